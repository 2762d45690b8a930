"""Tools of others: Kubernetes' schemas, models of custom resources, promtool, checkov."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate as kv
import yaml

from .model import Object, Release, title

HERE = Path(__file__).parent.parent
CUSTOM = (
    "cert-manager.io",
    "cloud.google.com",
    "external-secrets.io",
    "gateway.networking.k8s.io",
    "monitoring.coreos.com",
    "postgresql.cnpg.io",
)
# Rules of checkov that do not fit, each with its reason.
SKIPPED = {
    "CKV_K8S_35": "the program takes its database's address from a variable",
    "CKV_K8S_11": "a CPU limit throttles heartbeats; requests are set",
    "CKV_K8S_15": "releases are immutable; pulling them anew protects from nothing",
    "CKV_K8S_43": "a digest is a value that the operator sets",
    "CKV_K8S_8": "Jobs and tests end by themselves; servers have probes (own rule)",
    "CKV_K8S_9": "as CKV_K8S_8",
    "CKV_K8S_21": "rendered without a namespace of its own",
    "CKV_K8S_40": "uid 999 is the official Postgres image's",
    "CKV2_K8S_6": "the policy is chosen by component, which checkov does not follow",
}


def is_custom(o: Object) -> bool:
    return o["apiVersion"].split("/")[0] in CUSTOM


class Kubernetes:
    """Schemas of the oldest release that is supported and of the newest that is known."""

    def __init__(self, oldest: str = "1.32"):
        self.versions = [oldest, kv.latest_version()]
        self._judged: dict[str, list[str]] = {}

    def judge(self, release: Release) -> list[str]:
        faults = []
        for o in release.objects:
            if is_custom(o):
                continue
            key = json.dumps(o, sort_keys=True)
            if key not in self._judged:
                self._judged[key] = self._one(o)
            faults += self._judged[key]
        return faults

    def _one(self, o: Object) -> list[str]:
        faults = []
        for version in self.versions:
            try:
                kv.validate(o, version, strict=True)
            except kv.ValidationError as error:
                where = ".".join(str(p) for p in error.path)
                faults.append(f"{title(o)} ({version}): {where}: {error.message}")
            except (kv.SchemaNotFoundError, kv.InvalidSchemaError) as error:
                faults.append(f"{title(o)} ({version}): {error.message}")
        return faults


def judge_custom(releases: list[Release]) -> list[str]:
    """Faults of custom resources; all releases at once, for node starts slowly."""
    objects = {json.dumps(o, sort_keys=True): o for r in releases for o in r.objects if is_custom(o)}
    distinct = list(objects.values())
    verdicts = json.loads(
        run(["node", str(HERE / "crds/validate.mjs"), os.environ["CHART_CRDS"]], json.dumps(distinct))
    )
    judged = zip(distinct, verdicts, strict=True)
    # BackendConfig of GKE has no model: its few fields are looked at by hand.
    known = {"BackendConfig"}
    return [f"{title(o)}: {v}" for o, v in judged if v and not (v == "unknown" and o["kind"] in known)]


def promtool(*args: str) -> list[str]:
    program = shutil.which("promtool")
    done = subprocess.run(
        [program, *args], capture_output=True, text=True, check=False, timeout=120
    )
    return [] if done.returncode == 0 else [(done.stdout + done.stderr).strip()]


def check_rules(chart: Path, releases: list[Release]) -> list[str]:
    """Lints the files and what the chart makes of them, and runs their tests."""
    files = sorted(str(f) for f in chart.glob("alerts/*.yaml"))
    tests = sorted(str(f) for f in chart.glob("alerts/tests/*.yaml"))
    faults = promtool("check", "rules", "--lint=all", "--lint-fatal", *files)
    faults += promtool("test", "rules", *tests)
    with tempfile.TemporaryDirectory() as directory:
        for n, rule in enumerate(o for r in releases for o in r.of("PrometheusRule")):
            path = Path(directory) / f"{n}.yaml"
            path.write_text(yaml.safe_dump(rule["spec"]))
            faults += promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))
    return faults


def checkov(releases: list[Release]) -> list[str]:
    """Every object once, whichever releases it is part of."""
    with tempfile.TemporaryDirectory() as directory:
        seen = set()
        for release in releases:
            for o in release.objects:
                text = yaml.safe_dump(o, sort_keys=True)
                if text not in seen and not is_custom(o) and "v1alpha" not in o["apiVersion"]:
                    seen.add(text)
                    file = f"{len(seen):03}-{release.name.replace('/', '_')}-{o['kind']}.yaml"
                    (Path(directory) / file).write_text(text)
        program = Path(sys.executable).parent / "checkov"
        done = subprocess.run(
            [program, "-d", directory, "--framework", "kubernetes", "--compact", "--quiet",
             "--skip-download", "-o", "json", "--skip-check", ",".join(SKIPPED)],
            capture_output=True, text=True, check=False, timeout=240,
            env={**os.environ, "LOG_LEVEL": "ERROR"},
        )  # fmt: skip
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return [f"checkov: {done.stdout[-500:]}{done.stderr[-500:]}"]
    failed = report.get("results", {}).get("failed_checks", [])
    return [f"{f['check_id']} {f['check_name']}: {f['resource']} ({f['file_path']})" for f in failed]


def run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout
