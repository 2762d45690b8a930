"""What checks look at: rendered releases and their objects."""

import base64
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Object = dict[str, Any]

NAMESPACE = "ns"
RELEASE = "rel"


@dataclass(frozen=True)
class Pod:
    """A pod, or what a workload makes pods of."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Named container ports."""
        ports = [p for c in self.containers for p in c.get("ports", [])]
        return {p["name"]: p["containerPort"] for p in ports if "name" in p}

    def container(self, name: str) -> Object:
        return next(c for c in self.containers if c["name"] == name)


@dataclass
class Release:
    """One rendering of the chart."""

    name: str
    values: Object
    install: bool
    text: dict[str, str]
    objects: list[Object]
    chart: Path = field(default=Path())

    def of(self, *kinds: str) -> list[Object]:
        return [o for o in self.objects if o["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        return next((o for o in self.of(kind) if o["metadata"]["name"] == name), None)

    @property
    def pods(self) -> list[Pod]:
        found = []
        for o in self.objects:
            if o["kind"] == "Pod":
                found.append(Pod(o, o["metadata"].get("labels", {}), o["spec"]))
            elif o["kind"] in ("StatefulSet", "Deployment", "Job", "DaemonSet"):
                template = o["spec"]["template"]
                found.append(Pod(o, template["metadata"].get("labels", {}), template["spec"]))
        return found

    @property
    def ring(self) -> Pod:
        """The nodes' pods."""
        return next(p for p in self.pods if p.component == "ring")

    @property
    def toml(self) -> Object:
        """The program's configuration file."""
        return tomllib.loads(self.toml_text)

    @property
    def toml_text(self) -> str:
        maps = [o for o in self.of("ConfigMap") if "ringspan.toml" in o["data"]]
        return maps[0]["data"]["ringspan.toml"]

    def secret_values(self) -> Iterator[str]:
        for secret in self.of("Secret"):
            for value in secret.get("data", {}).values():
                yield base64.b64decode(value).decode()


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or []:
        has, value = term["key"] in labels, labels.get(term["key"])
        verdict = {
            "In": value in term.get("values", []),
            "NotIn": value not in term.get("values", []),
            "Exists": has,
            "DoesNotExist": not has,
        }[term["operator"]]
        if not verdict:
            return False
    return True


def title(o: Object) -> str:
    return f"{o['kind']}/{o['metadata']['name']}"


def strings(value: Any) -> Iterator[str]:
    """Every string inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """Length of a duration as the program writes it, such as 1h30m."""
    import re

    parts = re.findall(r"(\d+)(ms|s|m|h|d)", text)
    return sum(int(n) * UNITS[unit] for n, unit in parts)
