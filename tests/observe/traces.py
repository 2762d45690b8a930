"""One trace of a forwarded turn with a handoff, through a real backend: Arize Phoenix.

Starts Phoenix (PHOENIX, or `phoenix` in PATH) and a collector in front of it, a ring of three that
sends OTLP, and a client that comes to a node which is not its session's owner; has the owner drained;
asks again. Then reads the trace back from Phoenix and prints it as a tree, with the node and the links
of each span as the collector saw them (Phoenix keeps neither). Fails when a span, a parent, a link, the
logs or the metrics are missing. `--http` sends OTLP over HTTP instead of gRPC; `--no-phoenix` looks at
the collector only; `--picture` has Chromium look at Phoenix's own page.

    python tests/observe/traces.py [--out FILE] [--picture FILE] [--http] [--no-phoenix]
"""

import argparse
import base64
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from collector import Collector
from page import Browser
from ring import Client, Ring, free_port, get, get_json, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
WANTED = {"GET /v1/responses", "attach", "serve attach", "dial", "turn", "handoff"}
SHOWN = {"ringspan.epoch": "epoch", "ringspan.edge": "edge", "ringspan.turn.number": "turn",
         "ringspan.turn.outcome": "outcome", "ringspan.upstream": "upstream",
         "http.response.status_code": "status"}


class Phoenix:
    def __init__(self):
        program = os.environ.get("PHOENIX", "phoenix")
        self.port, self.grpc = free_port(), free_port()
        self.directory = tempfile.mkdtemp(prefix="phoenix-")
        env = {**os.environ, "PHOENIX_PORT": str(self.port), "PHOENIX_HOST": "127.0.0.1",
               "PHOENIX_GRPC_PORT": str(self.grpc), "PHOENIX_WORKING_DIR": self.directory,
               "PHOENIX_TELEMETRY_ENABLED": "false"}
        self.process = subprocess.Popen([program, "serve"], env=env, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{self.port}"
        until("Phoenix", lambda: get(f"{self.url}/healthz"), 120)

    def spans(self):
        """The trace as Phoenix has it."""
        path = f"{self.url}/v1/projects/default/spans/otlpv1?limit=1000"
        found = [span for span in get_json(path)["data"] if hexed(span["trace_id"]) == TRACE]
        return [{"name": span["name"], "id": hexed(span["span_id"]),
                 "parent": hexed(span.get("parent_span_id")),
                 "start": int(span["start_time_unix_nano"]) / 1e6,
                 "end": int(span["end_time_unix_nano"]) / 1e6,
                 "attributes": {pair["key"]: value(pair["value"]) for pair in span["attributes"]}}
                for span in found]

    def picture(self, path):
        """The trace as Phoenix shows it."""
        project = next(one["id"] for one in get_json(f"{self.url}/v1/projects")["data"] if one["name"] == "default")
        browser = Browser()
        try:
            browser.look(1400, 900)
            browser.call("Page.navigate", url=f"{self.url}/projects/{project}/traces/{TRACE}")
            for shown in ("handoff", "status_code"):
                browser.wait(shown, f"document.body?.innerText.includes('{shown}')", 90)
            browser.picture(path)
        finally:
            browser.stop()

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def hexed(text):
    """Ids as hexadecimal, whether they came so or as base64."""
    if not text:
        return ""
    return text if all(c in "0123456789abcdef" for c in text) else base64.b64decode(text).hex()


def value(of):
    return next((one for one in of.values() if one is not None), None)


def tree(spans, seen):
    """The spans as lines: start, duration, name by depth, node, what is worth knowing."""
    seen = {span["id"]: span for span in seen}
    here = {span["id"] for span in spans}
    first = min(span["start"] for span in spans)
    lines = ["   start      took  span                     node"]

    def show(parent, depth):
        below = [s for s in spans if (s["parent"] if s["parent"] in here else "") == parent]
        for span in sorted(below, key=lambda span: span["start"]):
            facts = [f"{short}={span['attributes'][key]}" for key, short in SHOWN.items()
                     if key in span["attributes"]]
            links = [f"-> {seen[link]['name']} of {seen[link]['node']}"
                     for link in seen[span["id"]]["links"] if link in seen]
            name = "  " * depth + span["name"]
            lines.append(f"{span['start'] - first:8.1f} {span['end'] - span['start']:7.1f} ms"
                         f"  {name:<23}  {seen[span['id']]['node']}  {', '.join(facts + links)}".rstrip())
            show(span["id"], depth + 1)

    show("", 0)
    return lines


def play(ring):
    """A forwarded turn, the drain of its owner, a turn at the heir."""
    client = Client(ring.nodes, "conversation", PARENT)
    client.attach(ring.nodes[0])
    assert client.turn() == "response.completed"
    owner = get_json(f"{ring.nodes[0].admin}/api/v1/sessions")["sessions"][0]["owner_node"]
    if owner == "ringspan-0":
        # By another way, so that the turn is forwarded.
        client.close()
        client.attach(ring.nodes[1])
        assert client.turn() == "response.completed"
    leaving = next(node for node in ring.nodes if node.name == owner)
    leaving.drain()
    leaving.process.wait(60)
    assert client.turn() == "response.completed", "the turn after the handoff"
    client.close()
    return owner


def check(collector, owner):
    """What a backend that keeps all of it would show."""
    spans = [span for span in collector.spans if span["trace"] == TRACE]
    handoff = next(span for span in spans if span["name"] == "handoff")
    assert handoff["node"] == owner, handoff
    turns = [span for span in spans if span["name"] == "turn"]
    assert any(handoff["id"] in turn["links"] and turn["node"] != owner for turn in turns), \
        "no turn of the heir points back at the handoff"
    assert any(turn["parent"] == serve["id"] for turn in turns for serve in spans
               if serve["name"] == "serve attach"), "no forwarded turn"
    drain = next(span for span in collector.spans if span["name"] == "drain")
    assert len(drain["events"]) >= 3, drain
    assert any(log["trace"] == TRACE and log["span"] == handoff["id"] for log in collector.logs), \
        "no log record is within the handoff's span"
    names = {name for _, name in collector.points}
    assert {"ringspan_turns", "ringspan_turn_seconds", "ringspan_sessions"} <= names, names
    assert all(headers.get("x-tenant") == "of a test" for headers in collector.headers)
    print(f"spans {len(collector.spans)}, of this trace {len(spans)}; log records {len(collector.logs)}; "
          f"metric families {len(names)}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--no-phoenix", action="store_true")
    arguments = parser.parse_args()
    phoenix = None if arguments.no_phoenix else Phoenix()
    collector = Collector(f"127.0.0.1:{phoenix.grpc}" if phoenix else None)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http if arguments.http else collector.grpc,
           "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf" if arguments.http else "grpc",
           "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=of%20a%20test",
           "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_BSP_SCHEDULE_DELAY": "200",
           "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    try:
        with Ring(3, env=lambda node: env) as ring:
            owner = play(ring)

            def arrived():
                spans = phoenix.spans() if phoenix else []
                seen = [span["name"] for span in collector.spans if span["trace"] == TRACE]
                # The heir's turn is the last to be sent.
                return WANTED <= set(seen) and seen.count("turn") >= 2 \
                    and (not phoenix or len(spans) == len(seen)) and (spans or True)

            spans = until("the whole trace", arrived, 60)
        check(collector, owner)
        if phoenix and arguments.picture:
            phoenix.picture(arguments.picture)
    finally:
        collector.stop()
        if phoenix:
            phoenix.stop()
    if phoenix:
        text = "\n".join(tree(spans, collector.spans))
        print(text)
        if arguments.out:
            arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
