"""What the program says of itself, and of what the chart would give it."""

import base64
import json
import os
import re
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path

from jsonschema import Draft202012Validator

from .model import NAMESPACE, Pod, Release, title

# Variables that are not settings of the program; docs/configuration.md and OpenTelemetry name them.
OTHERS = re.compile(
    r"POD_(NAME|NAMESPACE|UID)|NODE_NAME|HOST_IP|PG(PASSWORD|SSLMODE|SSLROOTCERT)|OTEL_[A-Z_]+"
    r"|SELFCHECK_BEARER"
)
# Keys of the file that are values of the chart by another name, or none of the operator's business.
NOT_IN_CONFIG = {
    "admin_listen", "advertise", "cluster_domain", "database_direct_url",
    "database_direct_url_file", "database_max_connections", "database_password_file", "database_url",
    "database_url_file", "drain_cleanup", "drain_dwell", "drain_timeout",
    "headless_service", "heartbeat_interval", "history_key", "history_key_file", "lease_margin", "lease_ttl", "listen",
    "migrate_on_start", "node_id", "otlp_endpoint", "peer_allow_plaintext", "peer_ca", "peer_cert",
    "peer_key", "peer_listen", "peer_token", "peer_token_file", "ring_poll", "static_members",
    "zone",
}  # fmt: skip


class Program:
    """The binary."""

    def __init__(self, path: str):
        self.path = path

    def ask(self, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(env or {})}
        return subprocess.run(
            [self.path, *args],
            capture_output=True, text=True, check=False, env=clean,
            timeout=60,
        )

    @cached_property
    def schema(self) -> dict:
        return json.loads(self.ask("config", "schema").stdout)

    @cached_property
    def variables(self) -> set[str]:
        return set(re.findall(r"\[env:\s+(RINGSPAN_\w+)", self.ask("serve", "--help").stdout))

    @cached_property
    def metrics(self) -> dict[str, dict]:
        listed = json.loads(self.ask("metrics", "list", "--json").stdout)
        return {m["name"]: m for m in listed}

    def judge(self, release: Release) -> list[str]:
        """Whether the program would start with what was rendered."""
        faults = [
            f"{'.'.join(map(str, e.path))}: {e.message}"
            for e in Draft202012Validator(self.schema).iter_errors(release.toml)
        ]
        for pod in release.pods:
            for container in pod.containers:
                if container["image"] == release.ring.container("ringspan")["image"]:
                    faults += self._container(pod, container)
        with tempfile.TemporaryDirectory() as directory:
            faults += self._config(release, Path(directory))
        return faults

    def _container(self, pod: Pod, container: dict) -> list[str]:
        where = f"{title(pod.owner)}/{container['name']}"
        names = [e["name"] for e in container.get("env", [])]
        given = {v for v in names if v.startswith("RINGSPAN_")}
        faults = [f"{where}: the program knows no {v}" for v in sorted(given - self.variables)]
        others = [v for v in names if v not in given and not OTHERS.fullmatch(v)]
        if pod.component != "ring":
            faults += [f"{where}: what is {v}?" for v in others]
        done = self.ask(*container["args"], "--help")
        if done.returncode != 0:
            faults.append(f"{where}: {' '.join(container['args'])}: {done.stderr.strip()}")
        return faults

    def _config(self, release: Release, directory: Path) -> list[str]:
        """`config check` of the file, in the environment of a pod of this release."""
        env = pod_environment(release, directory)
        path = directory / "ringspan.toml"
        path.write_text(release.toml_text.replace("/etc/ringspan", str(directory)))
        (directory / "peer-tls").mkdir(exist_ok=True)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (directory / "peer-tls" / name).write_text("-----BEGIN X-----\n")
        env["RINGSPAN_CONFIG"] = str(path)
        mount_secrets(release, directory)
        done = self.ask("config", "check", str(path), env=env)
        said = (done.stdout + done.stderr).strip()
        return [] if done.returncode == 0 else [f"config check: {said}"]


def pod_environment(release: Release, directory: Path) -> dict[str, str]:
    """Variables of the first pod, with stand-ins for what only a cluster knows."""
    name = release.ring.owner["metadata"]["name"]
    fields = {
        "metadata.name": f"{name}-{release.values['ring']['ordinalsStart']}",
        "metadata.namespace": NAMESPACE,
        "metadata.uid": "3f1c9f2e-0000-4000-8000-000000000000",
        "spec.nodeName": "node-1",
        "status.hostIP": "192.0.2.7",
    }
    env: dict[str, str] = {}
    for variable in release.ring.container("ringspan")["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            env[variable["name"]] = fields.get(source["fieldRef"]["fieldPath"], "")
        elif "secretKeyRef" in source:
            env[variable["name"]] = stand_in(variable["name"])
        else:
            env[variable["name"]] = expand(variable.get("value", ""), env)
    return {k: v.replace("/etc/ringspan", str(directory)) for k, v in env.items()}


def mount_secrets(release: Release, directory: Path) -> None:
    """Writes the files that the first pod would have from Secrets."""
    volumes = {v["name"]: v for v in release.ring.spec["volumes"]}
    for mount in release.ring.container("ringspan")["volumeMounts"]:
        for item in volumes.get(mount["name"], {}).get("secret", {}).get("items", []):
            path = Path(mount["mountPath"].replace("/etc/ringspan", str(directory)), item["path"])
            path.parent.mkdir(exist_ok=True)
            path.write_text(stand_in(item["key"]))


def stand_in(name: str) -> str:
    """Something that the program takes for the credential of this variable or key."""
    if name.lower().endswith(("url", "uri")):
        return "postgres://u@h/d"
    if "history" in name.lower():
        return base64.b64encode(bytes(32)).decode()
    return "stand-in-of-at-least-16-characters"


def expand(text: str, env: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), text)


def judge_schema(program: Program, chart: Path) -> list[str]:
    """The chart's `config` is the program's file less what the chart sets."""
    values = json.loads((chart / "values.schema.json").read_text())
    mine = values["properties"]["config"]["properties"]
    theirs = program.schema["properties"]
    missing = [k for k in theirs if k not in mine and k not in NOT_IN_CONFIG]
    faults = [f"config.{k}: new in the program; run charts/validate --update" for k in missing]
    faults += [f"config.{k}: the chart has it, the program not" for k in mine if k not in theirs]
    faults += [f"config.{k}: set by the chart itself" for k in mine if k in NOT_IN_CONFIG]
    for key in mine.keys() & theirs.keys():
        loose = {**mine[key]}
        if "minItems" not in theirs[key]:
            loose.pop("minItems", None)
        if loose != theirs[key]:
            faults.append(f"config.{key}: differs from the program; run charts/validate --update")
    guarded = set(re.findall(r'"([A-Z_]+)"', (chart / "templates/helpers/_env.tpl").read_text()))
    for key in sorted(NOT_IN_CONFIG):
        if key.upper() not in guarded:
            faults.append(f"RINGSPAN_{key.upper()}: could be replaced by extraEnv")
    return faults


def judge_versions(chart: Path) -> list[str]:
    """Chart and program are released together."""
    import tomllib

    import yaml

    cargo = chart.parent.parent / "Cargo.toml"
    if not cargo.exists():
        return []
    version = tomllib.loads(cargo.read_text())["package"]["version"]
    meta = yaml.safe_load((chart / "Chart.yaml").read_text())
    wrong = [k for k in ("version", "appVersion") if meta[k] != version]
    return [f"Chart.yaml: {k} is {meta[k]}, the program's version {version}" for k in wrong]
