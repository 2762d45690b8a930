"""charts/validate: runs all checks and prints what was checked."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import mutants, observed, program, refusals, tools
from .extra_cases import CASES
from .model import Release
from .render import Case, Chart, Refused, overlays
from .report import table
from .rules import RULES, broken

CHART = Path("charts/ringspan")


def main() -> int:
    parser = argparse.ArgumentParser(prog="charts/validate", description=__doc__)
    parser.add_argument("--mutants", action="store_true", help="plant faults and see them caught")
    parser.add_argument("--fast", action="store_true", help="without checkov")
    options = parser.parse_args()
    binary = program.Program(os.environ["RINGSPAN_BIN"])
    if options.mutants:
        return mutants.run(CHART, binary)
    return validate(binary, fast=options.fast)


def validate(binary: program.Program, *, fast: bool) -> int:
    chart, kubernetes = Chart(CHART), tools.Kubernetes()
    faults: list[str] = []
    releases: list[Release] = []
    rows = []
    checks = 4 + len(RULES) + len(kubernetes.versions)
    for case in [*overlays(CHART), *CASES]:
        found: list[str] = []
        made = []
        for install in (True, False):
            release, problems = judge_case(chart, case, kubernetes, binary, install=install)
            found += problems
            made += [release] if release else []
        found += chart.lint(case)
        releases += made
        objects = "+".join(str(len(r.objects)) for r in made)
        rows.append([case.name, objects, str(2 * checks), f"{len(found)} faults" if found else "ok"])
        faults += [f"{case.name}: {f}" for f in found]
    print(table(["VALUES", "OBJECTS (INSTALL+UPGRADE)", "CHECKS", "RESULT"], rows), end="\n\n")
    faults += whole_chart(chart, releases, binary, fast=fast)
    for fault in dict.fromkeys(faults):
        print(f"FAULT {fault}")
    print(f"\ncharts/validate: {len(rows)} sets of values, {len(releases)} releases, {len(faults)} faults")
    return 1 if faults else 0


def judge_case(
    chart: Chart, case: Case, kubernetes: tools.Kubernetes, binary: program.Program, *, install: bool
) -> tuple[Release | None, list[str]]:
    """Renders and checks one release, but for what is checked for all at once."""
    try:
        release = chart.render(case, install=install)
        again = Chart(chart.path).render(case, install=install)
    except Refused as refused:
        return None, [f"refused: {refused}"]
    found = [] if release.text == again.text else ["two renders differ"]
    found += broken(release)
    found += kubernetes.judge(release)
    found += binary.judge(release)
    return release, found


def whole_chart(
    chart: Chart, releases: list[Release], binary: program.Program, *, fast: bool
) -> list[str]:
    """What is checked once, each with its line in a table."""
    steps: list[tuple[str, str, Callable[[], list[str]], str | None]] = [
        ("values.schema.json", "is a schema of draft 2020-12", lambda: metaschema(chart.path), None),
        ("refused values", f"{len(refusals.table())} sets, each refused with its sentence",
         lambda: refusals.judge(chart), None),
        ("config keys", "those of the program", lambda: program.judge_schema(binary, chart.path), None),
        ("versions", "of chart and program", lambda: program.judge_versions(chart.path), None),
        ("alerts, dashboards", "metrics, labels, runbooks, tests",
         lambda: observed.judge(binary, chart.path), None),
        ("custom resources", "models of their operators", lambda: tools.judge_custom(releases),
         None if os.environ.get("CHART_CRDS") else "no node and npm, or no network"),
        ("alert rules", "promtool check rules, test rules",
         lambda: tools.check_rules(chart.path, releases),
         None if shutil.which("promtool") else "no promtool (Debian: apt-get install prometheus)"),
        ("checkov", f"all but {len(tools.SKIPPED)} rules, each with a reason",
         lambda: tools.checkov(releases), "--fast" if fast else None),
    ]  # fmt: skip
    rows, faults = [], []
    for name, what, check, lacking in steps:
        if lacking:
            rows.append([name, what, "", f"SKIPPED: {lacking}"])
            continue
        begun = time.monotonic()
        found = check()
        faults += [f"{name}: {f}" for f in found]
        took = f"{time.monotonic() - begun:.1f} s"
        rows.append([name, what, took, f"{len(found)} faults" if found else "ok"])
    print(table(["OF THE CHART", "WHAT", "TOOK", "RESULT"], rows), end="\n\n")
    return faults


def metaschema(path: Path) -> list[str]:
    import json

    from jsonschema import Draft202012Validator, SchemaError

    schema = json.loads((path / "values.schema.json").read_text())
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return [error.message]
    return [] if schema["$schema"].endswith("2020-12/schema") else ["not of draft 2020-12"]


sys.exit(main())
