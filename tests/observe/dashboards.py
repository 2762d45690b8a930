"""Whether every panel of the dashboards shows something.

Starts a ring of three over Postgres with OTLP, load from many clients, and a Prometheus (PROMETHEUS, or
`prometheus` in PATH) that scrapes it; has one node drained while it watches; then evaluates each query
of charts/ringspan/dashboards as Grafana would. A panel that has a word for "no value" may be empty: it
shows what should not happen. Prints panel and value; fails where another one is empty, and where a
metric that is registered stands in no panel.

    python tests/observe/dashboards.py [--json]
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.parse

from collector import Collector
from ring import ROOT, Load, Ring, binary, free_port, get, get_json, until

DASHBOARDS = ROOT / "charts" / "ringspan" / "dashboards"
SCRAPE = 1
# What a panel of five minutes would show needs no five minutes here.
WINDOW = "20s"
# Stands on no panel, with the reason.
UNSEEN = {
    "process_threads": "of interest in a debugger only",
}


class Prometheus:
    def __init__(self, directory, nodes):
        self.port = free_port()
        targets = [node.admin.removeprefix("http://") for node in nodes]
        config = {"global": {"scrape_interval": f"{SCRAPE}s"},
                  "scrape_configs": [{"job_name": "ringspan", "static_configs": [
                      {"targets": targets}]}]}
        path = directory / "prometheus.json"
        path.write_text(json.dumps(config))  # JSON is YAML.
        self.process = subprocess.Popen(
            [os.environ.get("PROMETHEUS", "prometheus"), f"--config.file={path}",
             f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=subprocess.DEVNULL, stderr=open(directory / "prometheus.log", "w"))
        self.url = f"http://127.0.0.1:{self.port}"
        until("Prometheus", lambda: get(f"{self.url}/-/ready"))

    def query(self, expression):
        """Series of the last half minute, each with its greatest value."""
        end = time.time()
        parameters = {"query": expression, "start": end - 30, "end": end, "step": 1}
        path = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        found = get_json(path)["data"]["result"]
        values = [[float(value) for _, value in series["values"]] for series in found]
        # A quantile of nothing is no number.
        values = [[value for value in one if not math.isnan(value)] for one in values]
        return [max(one) for one in values if one]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def expanded(expression):
    """The query as Grafana sends it, with all jobs and nodes."""
    expression = expression.replace("$__rate_interval", WINDOW).replace("[5m]", f"[{WINDOW}]")
    return expression.replace("$job", ".+").replace("$instance", ".+")


def panels():
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            if panel["datasource"]["type"] == "prometheus":
                yield path.stem, panel


def unseen():
    """Registered metrics on no panel."""
    listed = json.loads(subprocess.run([binary(), "metrics", "list", "--json"], check=True,
                                       capture_output=True, text=True).stdout)
    text = " ".join(target["expr"] for _, panel in panels() for target in panel["targets"])
    words = set(re.findall(r"[a-z_]+", text))

    def shown(name):
        return any(word == name or word in (f"{name}_bucket", f"{name}_count", f"{name}_sum") for word in words)

    return [metric["name"] for metric in listed if not shown(metric["name"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    collector = Collector()
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
    rows, wrong = [], []
    with Ring(3, env=lambda node: env) as ring:
        prometheus = Prometheus(ring.directory, ring.nodes)
        load = Load(ring, 24)
        try:
            until("some turns", lambda: load.ended > 200, 120)
            time.sleep(5 * SCRAPE)
            # A drain that is watched while it lasts: long turns keep it from being over at once.
            ring.nodes[2].drain()
            until("the drain in Prometheus", lambda: prometheus.query("ringspan_drain_state > 0"))
            until("a handoff in Prometheus", lambda: prometheus.query("ringspan_handoffs_total > 0"))
            time.sleep(4 * SCRAPE)
            for dashboard, panel in panels():
                values = [prometheus.query(expanded(target["expr"])) for target in panel["targets"]]
                may_be_empty = "noValue" in panel["fieldConfig"]["defaults"]
                empty = any(not of for of in values)
                best = [max(of) for of in values if of]
                rows.append({"dashboard": dashboard, "panel": panel["title"], "series": sum(map(len, values)),
                             "greatest": max(best) if best else None})
                if empty and not may_be_empty:
                    wrong.append(f"{dashboard}: {panel['title']} is empty")
        finally:
            load.stop()
            prometheus.stop()
            collector.stop()
        print(f"{load.ended} turns, {load.failed} not completed", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'dashboard':<10} {'panel':<44} {'series':>6} {'greatest':>14}")
        for row in rows:
            greatest = "none" if row["greatest"] is None else f"{row['greatest']:.6g}"
            print(f"{row['dashboard']:<10} {row['panel']:<44} {row['series']:>6} {greatest:>14}")
    wrong += [f"{name} is on no panel" for name in unseen() if name not in UNSEEN]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
