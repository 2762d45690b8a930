#!/usr/bin/env python3
"""Drives `codex app-server`: many turns of one thread in one process.

usage: codex_app_server.py BASE_URL [--turns N] [--pause SECONDS] [--prompt TEXT]
                           [--codex PATH] [--model NAME] [--sse]

JSON-RPC, one object a line, over stdin and stdout: `initialize`, the notification
`initialized`, `thread/start`, then for each turn `turn/start` and notifications until
`turn/completed`. Every third turn calls the shell tool. Counted are the `error`
notifications, which is what a user sees (`willRetry` ones too: "Reconnecting… n/5"),
and the answers that were restarted: more than one agent message started or completed in a
turn, or deltas that are not the completed text. Prints one JSON summary; the exit status is
0 if every turn completed with the right answer, once, and no error was visible.
"""

import argparse
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time

from codex import make_home

REQUEST_SECONDS = 30
TURN_SECONDS = 120


class AppServer:
    """One `codex app-server` process and the lines it writes."""

    def __init__(self, codex, env, cwd):
        self.process = subprocess.Popen(
            [codex, "app-server"], env=env, cwd=cwd, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        self.lines = queue.Queue()
        self.ids = 0
        self.pending = []  # Notifications that came before the reply to a request.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def _next(self, deadline):
        message = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
        if message is None:
            raise RuntimeError("app-server ended")
        return message

    def send(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def request(self, method, params):
        """Sends a request and waits for its result."""
        self.ids += 1
        self.send({"id": self.ids, "method": method, "params": params})
        deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            message = self._next(deadline)
            if message.get("id") == self.ids and "method" not in message:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.pending.append(message)

    def notifications(self, seconds):
        """Everything the server says, until the caller has enough."""
        deadline = time.monotonic() + seconds
        while True:
            yield self.pending.pop(0) if self.pending else self._next(deadline)

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def run_turn(server, thread, text):
    """One turn; what a user saw of it."""
    seen = {"errors": [], "warnings": [], "started": 0, "messages": [], "deltas": {}, "commands": 0}
    began = time.monotonic()
    turn_input = [{"type": "text", "text": text}]
    server.request("turn/start", {"threadId": thread, "input": turn_input})
    for message in server.notifications(TURN_SECONDS):
        method, params = message.get("method"), message.get("params") or {}
        item = params.get("item") or {}
        if method == "error":
            error = params["error"]
            seen["errors"].append(
                {"message": error.get("message"), "will_retry": params.get("willRetry")}
            )
        elif method in ("warning", "model/rerouted"):
            seen["warnings"].append({"kind": method, **params})
        elif method == "item/started" and item.get("type") == "agentMessage":
            seen["started"] += 1
        elif method == "item/agentMessage/delta":
            deltas = seen["deltas"]
            deltas[params["itemId"]] = deltas.get(params["itemId"], "") + params["delta"]
        elif method == "item/completed" and item.get("type") == "agentMessage":
            seen["messages"].append(item["text"])
        elif method == "item/completed" and item.get("type") == "commandExecution":
            seen["commands"] += 1
        elif method == "turn/completed":
            seen["status"] = params["turn"]["status"]
            seen["seconds"] = round(time.monotonic() - began, 3)
            return seen
    raise RuntimeError("no turn/completed")


def judge(seen, wanted, tool):
    """Whether the answer was restarted, and what else was wrong."""
    streamed = list(seen["deltas"].values())
    restarted = seen["started"] > 1 or len(seen["messages"]) > 1 or len(streamed) > 1
    restarted = restarted or (bool(streamed) and streamed != seen["messages"])
    wrong = []
    if seen["status"] != "completed":
        wrong.append(f"status {seen['status']}")
    if not seen["messages"] or wanted not in seen["messages"][-1]:
        wrong.append(f"answer {seen['messages'][-1:]}")
    if seen["commands"] != (1 if tool else 0):
        wrong.append(f"{seen['commands']} commands ran")
    return restarted, wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between turns")
    parser.add_argument("--prompt", default="", help="directives added to every prompt")
    parser.add_argument("--codex", default="codex")
    parser.add_argument("--model", default="gpt-5.5")
    parser.add_argument("--sse", action="store_true", help="HTTP instead of WebSocket")
    options = parser.parse_args()
    version = subprocess.run([options.codex, "--version"], capture_output=True, text=True,
                             check=True).stdout.strip()
    errors, warnings, restarted, failures, counts, slowest = [], [], 0, [], [], 0.0
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as cwd:
        env = make_home(home, options.base_url, not options.sse, options.model)
        server = AppServer(options.codex, env, cwd)
        try:
            info = {"name": "ringspan-check", "title": None, "version": "1"}
            server.request("initialize", {"clientInfo": info})
            server.send({"method": "initialized"})
            thread = server.request("thread/start", {"cwd": cwd})["thread"]["id"]
            for n in range(options.turns):
                tool = n % 3 == 2
                wanted = f"turn-number-{n}"
                prompt = f"[tool=shell:echo {wanted}]" if tool else wanted
                seen = run_turn(server, thread, f"{prompt} {options.prompt}".strip())
                again, wrong = judge(seen, wanted, tool)
                restarted += again
                errors += [{"turn": n, **error} for error in seen["errors"]]
                warnings += [{"turn": n, **warning} for warning in seen["warnings"]]
                failures += [f"turn {n}: {fault}" for fault in wrong]
                slowest = max(slowest, seen["seconds"])
                counts += [int(c) for c in re.findall(r"turn (\d+) of", "".join(seen["messages"][-1:]))]
                time.sleep(options.pause)
        except (RuntimeError, queue.Empty) as error:
            failures.append(f"{type(error).__name__}: {error}"[:500])
        finally:
            server.stop()
    if any(b - a != 1 for a, b in zip(counts, counts[1:])):
        failures.append(f"user messages seen at each turn: {counts}")
    summary = {
        "client": version, "model": options.model,
        "transport": "sse" if options.sse else "websocket",
        "turns": options.turns, "answered": len(counts), "slowest_seconds": slowest,
        "visible_errors": len(errors), "errors": errors[:20],
        "warnings": len(warnings), "first_warnings": warnings[:3],
        "restarted_answers": restarted, "failures": failures,
    }
    print(json.dumps(summary, indent=2))
    sys.exit(1 if failures or errors or restarted else 0)


if __name__ == "__main__":
    main()
