"""Keeps `config` of values.schema.json as the program has it."""

import json
from pathlib import Path
from typing import Any

from .program import NOT_IN_CONFIG, Program

WIDTH = 110


def update(program: Program, chart: Path) -> None:
    """Takes over what `ringspan config schema` says; the rest of the file stays."""
    path = chart / "values.schema.json"
    schema = json.loads(path.read_text())
    keys = {k: v for k, v in program.schema["properties"].items() if k not in NOT_IN_CONFIG}
    for key in ("upstream", "route"):
        keys[key] = {**keys[key], "minItems": 1}
    schema["properties"]["config"]["properties"] = keys
    path.write_text(written(schema) + "\n")


def written(value: Any, indent: int = 0) -> str:
    """JSON in which what fits into a line stands on one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, (dict, list)) or not value:
        return line
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {written(v, indent + 2)}" for k, v in value.items()]
        begin, end = "{", "}"
    else:
        items, (begin, end) = [written(v, indent + 2) for v in value], "[]"
    return f"{begin}\n{pad}" + f",\n{pad}".join(items) + f"\n{' ' * indent}{end}"
