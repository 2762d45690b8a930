"""Alerts and dashboards name what the program exports, and what the documents explain."""

import json
import re
from pathlib import Path

import yaml

from .program import Program

METRIC = re.compile(r"\b((?:ringspan|process)_[a-z0-9_]+)\b(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
PARTS = ("_bucket", "_sum", "_count")
# Labels that scraping adds.
SCRAPED = {"namespace", "job", "instance", "pod", "node", "service", "container", "cluster", "le"}


def judge(program: Program, chart: Path) -> list[str]:
    faults = []
    for where, expression in expressions(chart):
        for name, labels in METRIC.findall(expression):
            metric = lookup(program, name)
            if metric is None:
                faults.append(f"{where}: the program exports no {name}")
                continue
            known = set(metric["labels"]) | SCRAPED
            for label, wanted in LABEL.findall(labels):
                if label not in known:
                    faults.append(f"{where}: {name} has no label {label}")
                values = metric["values"].get(label)
                # A variable of the dashboard, or a pattern that is no plain list, can be anything.
                if values and re.fullmatch(r"\w+(\|\w+)*", wanted):
                    wrong = [value for value in wanted.split("|") if value not in values]
                    faults += [f"{where}: {name} has no {label} {value}" for value in wrong]
    return faults + runbooks(chart) + tests(chart) + dashboards(chart)


def lookup(program: Program, name: str) -> dict | None:
    if name in program.metrics:
        return program.metrics[name]
    for part in PARTS:
        base = program.metrics.get(name.removesuffix(part)) if name.endswith(part) else None
        if base and base["type"] == "histogram":
            return base
    return None


def expressions(chart: Path):
    """Every query of the chart, with where it stands."""
    for rule in alerts(chart):
        yield rule["alert"], rule["expr"]
    for path in sorted(chart.glob("dashboards/*.json")):
        board = json.loads(path.read_text())
        for panel in panels(board):
            for target in panel.get("targets", []):
                if "expr" in target:
                    yield f"{path.name}, {panel.get('title')}", target["expr"]
        for variable in board.get("templating", {}).get("list", []):
            query = variable.get("query", "")
            query = query.get("query", "") if isinstance(query, dict) else query
            yield f"{path.name}, variable {variable['name']}", query


def alerts(chart: Path) -> list[dict]:
    files = sorted(chart.glob("alerts/*.yaml"))
    groups = [g for f in files for g in yaml.safe_load(f.read_text())["groups"]]
    return [r for g in groups for r in g["rules"]]


def panels(board: dict):
    for panel in board.get("panels", []):
        yield panel
        yield from panels(panel)


def runbooks(chart: Path) -> list[str]:
    """Every alert links to a section that is there, and every section has its alert."""
    path = chart.parent.parent / "docs/runbooks.md"
    if not path.exists():
        return []
    sections = set(re.findall(r"^## (Ringspan\w+)$", path.read_text(), re.MULTILINE))
    names = {r["alert"] for r in alerts(chart)}
    faults = [f"docs/runbooks.md has no section {n}" for n in sorted(names - sections)]
    faults += [f"docs/runbooks.md: there is no alert {n}" for n in sorted(sections - names)]
    for rule in alerts(chart):
        link = f"docs/runbooks.md#{rule['alert'].lower()}"
        if rule["annotations"].get("runbook_url") != link:
            faults.append(f"{rule['alert']}: runbook_url is not {link}")
        if rule["labels"].get("severity") not in ("critical", "warning", "info"):
            faults.append(f"{rule['alert']}: no severity")
    return faults


def tests(chart: Path) -> list[str]:
    """Every alert is tested to fire and not to fire."""
    cases = [
        case
        for f in sorted(chart.glob("alerts/tests/*.yaml"))
        for test in yaml.safe_load(f.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    fires = {c["alertname"] for c in cases if c.get("exp_alerts")}
    return [
        f"{r['alert']}: no test makes it fire" for r in alerts(chart) if r["alert"] not in fires
    ]


def dashboards(chart: Path) -> list[str]:
    faults, uids = [], set()
    for path in sorted(chart.glob("dashboards/*.json")):
        board = json.loads(path.read_text())
        if not board.get("uid") or board["uid"] in uids or not board.get("title"):
            faults.append(f"{path.name}: uid and title have to be there, the uid once")
        uids.add(board.get("uid"))
        variables = board.get("templating", {}).get("list", [])
        if not any(v.get("type") == "datasource" for v in variables):
            faults.append(f"{path.name}: no variable for the data source")
    return faults
