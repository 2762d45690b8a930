"""Credentials stand in Secrets and nowhere else."""

import base64
import re

from ..model import Release, strings, title
from . import rule

WITH_PASSWORD = re.compile(r"://[^/\s\"'@]*:[^/\s\"'@]+@")
CREDENTIAL = re.compile(r"(PASSWORD|TOKEN|SECRET|API_KEY|BEARER)$")


@rule
def credentials_stand_in_secrets_only(release: Release):
    known = [v for v in release.secret_values() if len(v) >= 8]
    encoded = [base64.b64encode(v.encode()).decode() for v in known]
    for o in release.objects:
        if o["kind"] == "Secret":
            if "stringData" in o:
                yield f"{title(o)} has stringData, which is kept as it is"
            continue
        for text in strings(o):
            if WITH_PASSWORD.search(text):
                yield f"{title(o)} holds a URL with a password"
            if any(value in text for value in [*known, *encoded]):
                yield f"{title(o)} holds a value of a Secret"
    for pod in release.pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                if CREDENTIAL.search(variable["name"]) and variable.get("value"):
                    yield f"{title(pod.owner)}: {variable['name']} is given in plain text"
            for text in container.get("args", []) + container.get("command", []):
                if WITH_PASSWORD.search(text):
                    yield f"{title(pod.owner)}: an argument holds a password"


@rule
def keys_of_the_charts_secrets_exist(release: Release):
    made = {s["metadata"]["name"]: set(s.get("data", {})) for s in release.of("Secret")}
    for external in release.of("ExternalSecret"):
        spec = external["spec"]
        if not spec.get("dataFrom"):
            made[spec["target"]["name"]] = {d["secretKey"] for d in spec["data"]}
    for pod in release.pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                ref = variable.get("valueFrom", {}).get("secretKeyRef")
                if ref and ref["name"] in made and ref["key"] not in made[ref["name"]]:
                    yield f"{variable['name']}: Secret {ref['name']} has no key {ref['key']}"
        for volume in pod.spec.get("volumes", []):
            secret = volume.get("secret", {})
            for item in secret.get("items", []):
                if item["key"] not in made.get(secret["secretName"], {item["key"]}):
                    yield f"{volume['name']}: Secret {secret['secretName']} has no key {item['key']}"


@rule
def mounted_credentials_are_in_no_environment(release: Release):
    if not release.values["secrets"]["mount"]:
        return
    own = {v["name"] for v in release.values["secrets"]["env"]}
    for pod in release.pods:
        if pod.component not in ("ring", "migrations"):
            continue
        for container in pod.containers:
            for variable in container.get("env", []):
                ref = variable.get("valueFrom", {}).get("secretKeyRef")
                if ref and variable["name"] not in own | {"OTEL_EXPORTER_OTLP_HEADERS"}:
                    yield f"{title(pod.owner)}/{container['name']}: {variable['name']} is in the environment"


@rule
def notes_name_every_key_of_the_operators_secret(release: Release):
    """What pods take from a Secret that the chart does not make stands in the notes."""
    secrets = release.values["secrets"]
    if secrets["source"] != "existing":
        return
    name = secrets["existing"]["name"]
    needed = set()
    for pod in release.pods:
        for container in pod.containers:
            for variable in container.get("env", []):
                ref = variable.get("valueFrom", {}).get("secretKeyRef") or {}
                needed |= {ref["key"]} if ref.get("name") == name else set()
        for volume in pod.spec.get("volumes", []):
            secret = volume.get("secret", {})
            if secret.get("secretName") == name:
                needed |= {item["key"] for item in secret.get("items", [])}
    notes = next(text for file, text in release.text.items() if file.endswith("NOTES.txt"))
    line = next((line for line in notes.splitlines() if "has to hold:" in line), "")
    told = set(line.partition("has to hold:")[2].split())
    for key in sorted(needed ^ told):
        yield f"the Secret {name} {'needs' if key in needed else 'does not need'} {key}"
