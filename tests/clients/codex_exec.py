#!/usr/bin/env python3
"""Runs `codex exec` against a Responses endpoint, by WebSocket and by SSE.

usage: codex_exec.py BASE_URL [--codex PATH] [--model NAME] [--transport websocket|sse|both]

Three turns in one conversation, each in a process of its own: a plain one, one that calls
the shell tool, one that is plain again. Prints one JSON summary; the exit status is 0 if
every check held.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile

from codex import make_home

TURN_SECONDS = 60


def run(codex, env, cwd, *arguments):
    """One `codex exec`: its JSON events."""
    done = subprocess.run(
        [codex, "exec", "--skip-git-repo-check", *arguments],
        env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TURN_SECONDS, check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    events = [json.loads(line) for line in lines]
    if done.returncode != 0:
        raise RuntimeError(f"codex exit {done.returncode}: {done.stderr[-300:]} {lines[-2:]}")
    return events


def answer(events):
    items = [e["item"] for e in events if e["type"] == "item.completed"]
    texts = [item["text"] for item in items if item["type"] == "agent_message"]
    assert len(texts) == 1, f"{len(texts)} answers: {texts}"
    errors = [e for e in events if e["type"] in ("error", "turn.failed")]
    errors += [item for item in items if item["type"] == "error"]
    return texts[0], items, errors


def conversation(options, websockets):
    """Three turns; returns the failures and the errors that a user would have seen."""
    failures, visible, turns = [], [], []
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as cwd:
        env = make_home(home, options.base_url, websockets, options.model)
        prompts = ["hello", "[tool=shell:echo from-the-tool]", "goodbye"]
        for n, prompt in enumerate(prompts):
            resume = ["resume", "--last"] if n else []
            try:
                events = run(options.codex, env, cwd, *resume, "--json", prompt)
                text, items, errors = answer(events)
                visible += errors
                wanted = "from-the-tool" if "tool=" in prompt else prompt
                assert wanted in text, f"turn {n}: {text}"
                if "tool=" in prompt:
                    commands = [i for i in items if i["type"] == "command_execution"]
                    assert len(commands) == 1, f"{len(commands)} commands ran"
                turns.append(int(re.search(r"turn (\d+) of", text)[1]))
            except Exception as error:  # Reported, whatever broke it.
                failures.append(f"{type(error).__name__}: {error}"[:800])
        if [n - turns[0] for n in turns] != [0, 1, 2]:
            failures.append(f"user messages seen at each turn: {turns}")
    return {"failures": failures, "visible_errors": visible, "user_messages": turns}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--codex", default="codex")
    parser.add_argument("--model", default="gpt-5.5")
    parser.add_argument("--transport", choices=["websocket", "sse", "both"], default="both")
    options = parser.parse_args()
    version = subprocess.run([options.codex, "--version"], capture_output=True, text=True,
                             check=True).stdout.strip()
    summary = {"client": version, "model": options.model}
    for transport in ("websocket", "sse"):
        if options.transport in (transport, "both"):
            summary[transport] = conversation(options, transport == "websocket")
    print(json.dumps(summary, indent=2))
    results = [summary[t] for t in ("websocket", "sse") if t in summary]
    sys.exit(1 if any(r["failures"] or r["visible_errors"] for r in results) else 0)


if __name__ == "__main__":
    main()
