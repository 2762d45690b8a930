"""Rendering by the real Helm engine."""

from dataclasses import dataclass
from pathlib import Path

import helm_python as helm
import yaml

from .model import NAMESPACE, RELEASE, Object, Release

# What the engine logs of refused values is in the exception.
helm.disable_logging()


@dataclass(frozen=True)
class Case:
    """Values that the chart has to be right with."""

    name: str
    values: Object


class Refused(Exception):
    """Schema or template refused the values."""


def overlays(chart: Path) -> list[Case]:
    """The defaults, every overlay and every example."""
    files = [*sorted(chart.glob("values-*.yaml")), *sorted(chart.glob("examples/*.yaml"))]
    cases = [Case("values.yaml", {})]
    cases += [Case(str(f.relative_to(chart)), yaml.safe_load(f.read_text())) for f in files]
    return cases


class Chart:
    """A chart in a directory."""

    def __init__(self, path: Path):
        self.path = path
        self._chart = helm.Chart.load(str(path))

    def render(self, case: Case, *, install: bool) -> Release:
        """Raises Refused, with what Helm said."""
        try:
            self._chart.validate_schema(case.values)
            text = self._chart.render(
                case.values,
                name=RELEASE,
                namespace=NAMESPACE,
                is_install=install,
                is_upgrade=not install,
                revision=1 if install else 2,
            )
        except helm.HelmError as error:
            raise Refused(str(error)) from error
        values = self._chart.merge_values(case.values)
        objects = []
        for name, content in sorted(text.items()):
            if name.endswith((".yaml", ".yml")):
                objects += [o for o in yaml.load_all(content, Loader=UniqueKeys) if o]
        return Release(case.name, values, install, text, objects, self.path)

    def lint(self, case: Case) -> list[str]:
        report = helm.lint(
            str(self.path), case.values, strict=True, namespace=NAMESPACE, kube_version="v1.32.0"
        )
        worst = [m for m in report["messages"] if m["severity"] >= 2]
        return [f"{m['path']}: {m['error']}" for m in worst] + list(report["errors"])


class UniqueKeys(yaml.CSafeLoader):
    """YAML in which a key stands once: Kubernetes would silently take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {name} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)
