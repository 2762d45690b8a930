#!/usr/bin/env python3
"""Conversations of the openai Python SDK, each on one WebSocket from beginning to end.

usage: openai_python_socket.py BASE_URL [--talks N] [--turns N] [--pause SECONDS] [--prompt TEXT]

`store: false`, and never more than the new text and `previous_response_id`: what the model
knows of the turns before, it knows from the other end of the socket. Prints one JSON
summary; the exit status is 0 if no turn failed and the model saw every conversation whole.
"""

import argparse
import json
import os
import sys
import threading
import time

import openai
from openai_python import digest, turn, user


def talk(options, name, failures, answered):
    key = os.environ.get("OPENAI_API_KEY", "sample-key")
    client = openai.OpenAI(
        base_url=options.base_url, api_key=key, max_retries=0, timeout=60,
        default_headers={"session-id": name},
    )
    texts, previous = [], None
    try:
        with client.responses.connect(extra_headers={"session-id": name}) as connection:
            for n in range(options.turns):
                text = f"{name} turn {n} {options.prompt}".strip()
                texts.append(text)
                more = {"previous_response_id": previous} if previous else {}
                response, said = turn(connection, input=[user(text)], **more)
                wanted = f"turn {len(texts)} of conversation {digest(*texts)}"
                assert wanted in said, f"no {wanted!r} in {said!r}"
                assert response.output_text == said, "the deltas are not the text"
                previous = response.id
                answered.append(text)
                time.sleep(options.pause)
    except Exception as error:  # Each conversation is reported, whatever breaks it.
        failures.append(f"{name} turn {len(texts)}: {type(error).__name__}: {error}"[:500])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--talks", type=int, default=4)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between turns")
    parser.add_argument("--prompt", default="", help="directives added to every prompt")
    options = parser.parse_args()
    failures, answered = [], []
    threads = [
        threading.Thread(target=talk, args=(options, f"python-{n}", failures, answered))
        for n in range(options.talks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = {
        "client": f"openai-python {openai.__version__}", "conversations": options.talks,
        "turns": options.talks * options.turns, "answered": len(answered), "failures": failures,
    }
    print(json.dumps(summary, indent=2))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
