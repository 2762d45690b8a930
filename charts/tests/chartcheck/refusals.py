"""Values that have to be refused, each with the sentence that says why."""

import re
from pathlib import Path

import yaml

from .render import Case, Chart, Refused

TABLE = Path(__file__).parent.parent / "refused.yaml"


def table() -> list[dict]:
    return yaml.safe_load(TABLE.read_text())


def judge(chart: Chart) -> list[str]:
    faults = []
    for row in table():
        try:
            chart.render(Case("refused", row["values"]), install=not row.get("upgrade"))
        except Refused as refused:
            # Helm folds long lines.
            said = " ".join(str(refused).split())
            if not re.search(row["says"], said):
                faults.append(f"{row['name']}: refused, but it says: {said[-300:]}")
        else:
            faults.append(f"{row['name']}: was accepted")
    return faults
