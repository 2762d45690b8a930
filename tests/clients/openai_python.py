#!/usr/bin/env python3
"""Runs the openai Python SDK against a Responses endpoint.

usage: openai_python.py BASE_URL      (for example http://127.0.0.1:8080/v1)

Needs `pip install 'openai[realtime]'`; OPENAI_API_KEY is used if it is set. Prints one JSON
summary; the exit status is 0 if every check held.
"""

import hashlib
import json
import os
import sys

import openai

import checks

MODEL = "gpt-5.5"


def digest(*texts):
    """What the sample says of a conversation of these user texts."""
    return hashlib.sha256("".join(f"u\x1f{t}\x1e" for t in texts).encode()).hexdigest()[:16]


def user(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def turn(connection, **create):
    """One turn over a WebSocket: the final response, and the joined deltas."""
    connection.response.create(model=MODEL, store=False, **create)
    deltas = []
    for event in connection:
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        elif event.type in ("response.completed", "response.failed", "response.incomplete"):
            return event.response, "".join(deltas)
        elif event.type == "error":
            raise RuntimeError(f"error event: {event.error.code}")
    raise RuntimeError("the connection ended before a terminal event")


def websocket_chains_two_turns(client):
    with client.responses.connect() as connection:
        first, said = turn(connection, input=[user("one")])
        assert f"turn 1 of conversation {digest('one')}" in said, said
        assert first.output_text == said
        second, said = turn(
            connection, input=[user("two [deltas=20]")], previous_response_id=first.id
        )
        assert f"turn 2 of conversation {digest('one', 'two [deltas=20]')}" in said, said
        assert second.previous_response_id == first.id
        assert second.usage.total_tokens > 0


def websocket_prewarm_is_continued(client):
    with client.responses.connect() as connection:
        warm, said = turn(connection, input=[user("warm")], generate=False)
        assert not said and not warm.output
        _, said = turn(connection, input=[user("go")], previous_response_id=warm.id)
        assert f"turn 2 of conversation {digest('warm', 'go')}" in said, said


def websocket_calls_a_tool(client):
    weather = {
        "type": "function",
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    with client.responses.connect() as connection:
        text = "[tool=get_weather:Paris]"
        first, _ = turn(connection, input=[user(text)], tools=[weather])
        call = first.output[0]
        assert json.loads(call.arguments) == {"city": "Paris"}, call
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        _, said = turn(
            connection, input=[output], tools=[weather], previous_response_id=first.id
        )
        assert 'the tool said "sunny"' in said, said


def websocket_unknown_id_is_refused(client):
    with client.responses.connect() as connection:
        connection.response.create(
            model=MODEL, store=False, input="x", previous_response_id="resp_unknown"
        )
        event = connection.recv()
        assert event.type == "error" and event.status == 400, event
        assert event.error.code == "previous_response_not_found", event
        # The connection is still good.
        _, said = turn(connection, input=[user("one")])
        assert "turn 1" in said, said


def websocket_steers(client):
    with client.responses.connect() as connection:
        connection.response.create(
            model=MODEL, store=False, input="long [deltas=500] [delay=10ms]"
        )
        kinds, said, steered = [], "", None
        for event in connection:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                said += event.delta
                if steered is None:
                    steered = True
                    connection.response.steer(
                        previous_response_id=response_id, input=[user("the other way")]
                    )
            elif event.type == "response.created":
                response_id = event.response.id
            elif event.type == "response.completed":
                break
            elif event.type == "error":
                raise RuntimeError(f"error event: {event.error.code}")
        assert "response.steer.accepted" in kinds, set(kinds)
        assert 'you said "the other way"' in said, said[-200:]
        assert kinds.count("response.created") == 2, kinds.count("response.created")


def http_chains_two_stored_turns(client):
    first = client.responses.create(model=MODEL, input="one", store=True)
    assert f"turn 1 of conversation {digest('one')}" in first.output_text, first.output_text
    second = client.responses.create(
        model=MODEL, input="two", store=True, previous_response_id=first.id
    )
    assert f"turn 2 of conversation {digest('one', 'two')}" in second.output_text


def http_resends_history_without_store(client):
    history = [user("one")]
    first = client.responses.create(model=MODEL, input=history, store=False)
    history += [item.model_dump(exclude_none=True) for item in first.output] + [user("two")]
    second = client.responses.create(model=MODEL, input=history, store=False)
    assert f"turn 2 of conversation {digest('one', 'two')}" in second.output_text


def http_streams(client):
    events = list(
        client.responses.create(model=MODEL, input="one [deltas=20]", store=False, stream=True)
    )
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created", events[0].type
    assert events[-1].type == "response.completed", events[-1].type
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert events[-1].response.output_text == said
    assert sum(e.type == "response.output_text.delta" for e in events) == 20


def http_stream_helper_works(client):
    with client.responses.stream(model=MODEL, input="one", store=False) as stream:
        for _ in stream:
            pass
        assert "turn 1" in stream.get_final_response().output_text


def http_unknown_id_is_refused(client):
    try:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_unknown")
    except openai.BadRequestError as error:
        assert error.code == "previous_response_not_found", error.code
    else:
        raise AssertionError("it was accepted")


CHECKS = [
    websocket_chains_two_turns,
    websocket_prewarm_is_continued,
    websocket_calls_a_tool,
    websocket_unknown_id_is_refused,
    websocket_steers,
    http_chains_two_stored_turns,
    http_resends_history_without_store,
    http_streams,
    http_stream_helper_works,
    http_unknown_id_is_refused,
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    key = os.environ.get("OPENAI_API_KEY", "sample-key")
    client = openai.OpenAI(base_url=sys.argv[1], api_key=key, max_retries=0, timeout=30)
    held = checks.run(f"openai-python {openai.__version__}", CHECKS, client)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
