"""Faults planted in copies of the chart: checks that catch nothing prove nothing."""

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import observed, refusals, tools
from .extra_cases import CASES
from .program import Program, judge_schema
from .render import Case, Chart, Refused, overlays
from .report import table
from .rules import broken


@dataclass(frozen=True)
class Mutant:
    """One change of one file, the values that show it, and a pattern of what must be said."""

    name: str
    file: str
    old: str
    new: str
    says: str
    case: str = "values.yaml"


T = "templates/"
MUTANTS = [
    Mutant("a Service selects another component", T + "network/service.yaml",
           '(list . "ring") | nindent 4', '(list . "test") | nindent 4', "services_select"),
    Mutant("the workload does not select its pods", T + "ring/statefulset.yaml",
           '{{- include "ringspan.selector" (list . "ring") | nindent 6 }}', "      app: x",
           "workloads_select"),
    Mutant("the grace period forgets the dwell", T + "helpers/_numbers.tpl",
           '(int64 (include "ringspan.seconds" $t.drainDwell)) ', "", "the_grace_period"),
    Mutant("the guard of the grace period is gone", T + "helpers/_guards.tpl",
           "{{- if lt $grace $need -}}", "{{- if false -}}", "a grace period that cuts.*accepted"),
    Mutant("the guard of the pool is gone", T + "helpers/_guards.tpl",
           "{{- if gt $need (int64 $pool.budget) -}}", "{{- if false -}}", "more connections.*accepted"),
    Mutant("notes that forget a key", T + "NOTES.txt",
           '{{- range include "ringspan.nodeKeys" . | fromJsonArray }}', "{{- range list }}",
           "needs peer-token"),
    Mutant("the guard of the lease's margin is gone", T + "helpers/_guards.tpl",
           "{{- else if lt (mul 8 $margin) $ttl -}}", "{{- else if false -}}",
           "less than an eighth.*accepted"),
    Mutant("a password in the ConfigMap", T + "helpers/_config.tpl",
           "cluster_domain = ", 'database_url = "postgres://u:hunter22@h/d"\ncluster_domain = ',
           "credentials_stand"),
    Mutant("an inline secret as an annotation", T + "helpers/_pod.tpl",
           "checksum/config:", "token: {{ .Values.secrets.inline.peerToken | quote }}\nchecksum/config:",
           "holds a value of a Secret", "values-dev.yaml"),
    Mutant("the peer token in plain text", T + "helpers/_env.tpl",
           '{{ include "ringspan.credential" (list . "RINGSPAN_PEER_TOKEN" "peer-token") }}',
           "- {name: RINGSPAN_PEER_TOKEN, value: abcdefghijklmnop}", "in plain text"),
    Mutant("a key that the Secret lacks", T + "helpers/_env.tpl", '"RINGSPAN_PEER_TOKEN" "peer-token"',
           '"RINGSPAN_PEER_TOKEN" "peer_token"',
           "has no key peer_token", "values-dev.yaml"),
    Mutant("a file that the Secret lacks", T + "helpers/_env.tpl", 'append $keys "peer-token"',
           'append $keys "peer_token"', "has no key peer_token", "mounted secrets"),
    Mutant("a file that is not mounted", T + "helpers/_pod.tpl",
           "mountPath: /etc/ringspan/credentials", "mountPath: /etc/ringspan/secrets",
           "peer-token-file|PEER_TOKEN_FILE", "mounted secrets"),
    Mutant("a mounted password in the environment too", T + "helpers/_database.tpl",
           "{{- if $root.Values.secrets.mount -}}", "{{- if false -}}", "is in the environment",
           "mounted secrets"),
    Mutant("a metric that is not exported", "alerts/ring.yaml",
           "ringspan_lease_remaining_seconds <= 0", "ringspan_lease_left_seconds <= 0",
           "exports no ringspan_lease_left_seconds"),
    Mutant("a label that a metric lacks", "alerts/service.yaml",
           'ringspan_errors_total{blame="us"', 'ringspan_errors_total{fault="us"', "no label fault"),
    Mutant("an outcome that a metric never has", "alerts/ring.yaml",
           'outcome=~"failed|unfit"', 'outcome=~"failed|held"', "no outcome held"),
    Mutant("an alert that fires too early", "alerts/ring.yaml", "for: 2m", "for: 0m", "alert rules"),
    Mutant("an alert without a runbook", "alerts/ring.yaml",
           "docs/runbooks.md#ringspannodedown", "docs/runbooks.md#nodedown", "runbook_url is not"),
    Mutant("a PDB that matches Jobs and tests", T + "scaling/pdb.yaml",
           '{{- include "ringspan.selector" (list . "ring") | nindent 6 }}',
           "      app.kubernetes.io/instance: {{ .Release.Name }}", "disruption_budgets"),
    Mutant("a PDB with a number as a string", T + "scaling/pdb.yaml",
           "{{ int .Values.pdb.maxUnavailable }}", '"{{ .Values.pdb.maxUnavailable }}"',
           "is the string '1'"),
    Mutant("a Job without restrictions", T + "helpers/_migrations.tpl",
           '{{- include "ringspan.containerBase" . | nindent 8 }}',
           'image: {{ include "ringspan.image" . }}', "pods_are_restricted"),
    Mutant("a test pod with a token", T + "helpers/_security.tpl",
           "automountServiceAccountToken: false", "automountServiceAccountToken: true", "mounts a token"),
    Mutant("a root that can be written", T + "helpers/_security.tpl",
           '"readOnlyRootFilesystem" true', '"readOnlyRootFilesystem" false', "may write to its root"),
    Mutant("a preStop that needs a shell", T + "helpers/_pod.tpl",
           "sleep:\n        seconds: {{ int $v.timing.preStopSleepSeconds }}",
           'exec:\n        command: [sleep, "5"]', "preStop needs more", "everything that can be added"),
    Mutant("pods that wait too short", T + "helpers/_pod.tpl",
           '{{ printf "%ds" (int .Values.migrations.waitTimeoutSeconds) }}', "60s", "may take"),
    Mutant("a hook after the install", T + "migrations/job.yaml",
           "pre-install,pre-upgrade", "post-install,pre-upgrade", "deadlocks"),
    Mutant("a hook before its Secret", T + "helpers/_migrations.tpl",
           'or .Release.IsUpgrade (include "ringspan.migrationsReady" .)', "or true",
           "before ringspan exists|before its database", "values-dev.yaml"),
    Mutant("draining nodes that vanish from DNS", T + "network/headless.yaml",
           "publishNotReadyAddresses: true", "publishNotReadyAddresses: false", "draining_nodes"),
    Mutant("the peer port for clients", T + "network/service.yaml",
           "targetPort: http", "targetPort: peer", "exposes the peer port"),
    Mutant("everybody reaches the peer port", T + "network/policy.yaml",
           '- {port: peer, protocol: TCP}\n      from:\n        {{- include "ringspan.peerOf" (list . "ring") | nindent 8 }}',
           "- {port: peer, protocol: TCP}\n      from:\n        - podSelector: {}", "only_nodes_reach"),
    Mutant("a port name that is too long", T + "helpers/_pod.tpl",
           "{name: admin, containerPort", "{name: administration-x, containerPort", "longer than 15"),
    Mutant("a probe of a port that is not there", T + "helpers/_pod.tpl",
           "port: admin\nperiodSeconds", "port: health\nperiodSeconds", "probe asks|Probe asks"),
    Mutant("a setting that the program lacks", T + "helpers/_config.tpl",
           "ring_poll = ", "ring_pool = ", "ring_pool"),
    Mutant("a variable that the program lacks", T + "helpers/_env.tpl",
           "name: RINGSPAN_ADVERTISE", "name: RINGSPAN_ADVERTISED", "knows no RINGSPAN_ADVERTISED"),
    Mutant("a command that the program lacks", T + "helpers/_migrations.tpl",
           "args: [migrate, run]", "args: [migrate, up]", "migrate up"),
    Mutant("an address that needs the pod's name before it is known", T + "helpers/_env.tpl",
           '{{ include "ringspan.fieldEnv" (list "POD_NAME" "metadata.name") }}\n', "", "uses POD_NAME"),
    Mutant("a random value at render", T + "helpers/_pod.tpl",
           "checksum/config:", "nonce: {{ randAlphaNum 8 | quote }}\nchecksum/config:", "two renders differ"),
    Mutant("replicas beside an autoscaler", T + "ring/statefulset.yaml",
           "{{- if not $v.autoscaling.enabled }}", "{{- if true }}", "has replicas too", "values-prod.yaml"),
    Mutant("an autoscaler that does not wait for drains", T + "scaling/hpa.yaml",
           'periodSeconds: {{ include "ringspan.graceSeconds" . }}', "periodSeconds: 60",
           "does not wait for a drain", "values-prod.yaml"),
    Mutant("a monitor of a port that is not there", T + "observability/monitors.yaml",
           "- port: admin", "- port: metrics", "monitors_find", "values-prod.yaml"),
    Mutant("a field that Kubernetes lacks", T + "ring/statefulset.yaml",
           "minReadySeconds:", "minimumReadySeconds:", "minimumReadySeconds"),
    Mutant("a field that a custom resource lacks", T + "observability/monitors.yaml",
           "scrapeTimeout: {{", "scrapeLimit: {{", "custom resources", "values-prod.yaml"),
    Mutant("a schema that is open", "values.schema.json",
           '"type": "object",\n  "additionalProperties": false,', '"type": "object",',
           "an unknown key: was accepted"),
    Mutant("a schema that fell behind the program", "values.schema.json",
           '"history_bytes"', '"histroy_bytes"', "histroy_bytes|history_bytes"),
]  # fmt: skip


def run(source: Path, binary: Program) -> int:
    rows, survivors = [], 0
    for n, mutant in enumerate(MUTANTS, 1):
        if lacking(mutant):
            rows.append([mutant.name, "SKIPPED", f"no {lacking(mutant)}"])
            continue
        print(f"\r{n}/{len(MUTANTS)}", end="", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as directory:
            # The alerts' runbooks are looked for beside the chart.
            copy = Path(directory) / "charts/ringspan"
            shutil.copytree(source, copy)
            shutil.copytree(source.parent.parent / "docs", Path(directory) / "docs")
            plant(mutant, copy)
            caught = [f for f in judge(copy, mutant, binary) if re.search(mutant.says, f)]
        survivors += not caught
        by = caught[0].split("\n")[0][:100] if caught else ""
        rows.append([mutant.name, "caught" if caught else "SURVIVED", by])
    print(file=sys.stderr)
    print(table(["PLANTED FAULT", "RESULT", "BY"], rows))
    print(f"\ncharts/validate --mutants: {len(MUTANTS)} planted, {survivors} survived")
    return 1 if survivors else 0


def lacking(mutant: Mutant) -> str | None:
    """What this machine has not, that would catch it."""
    if mutant.says == "alert rules" and not shutil.which("promtool"):
        return "promtool"
    if mutant.says == "custom resources" and not os.environ.get("CHART_CRDS"):
        return "models of custom resources"
    return None


def plant(mutant: Mutant, chart: Path) -> None:
    path = chart / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        raise SystemExit(f"mutant {mutant.name!r}: {mutant.file} does not hold {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new, 1))


def judge(path: Path, mutant: Mutant, binary: Program) -> list[str]:
    """All checks but checkov, over one set of values; as charts/validate would run them."""
    found = observed.judge(binary, path) + judge_schema(binary, path)
    if mutant.file.startswith("alerts/") and shutil.which("promtool"):
        found += [f"alert rules: {f}" for f in tools.check_rules(path, [])]
    chart = Chart(path)
    if mutant.file.endswith(("_guards.tpl", ".json")):
        found += refusals.judge(chart)
    case = next(c for c in [*overlays(path), *CASES] if c.name == mutant.case)
    try:
        return found + judge_release(chart, case, binary)
    except Refused as refused:
        return [*found, f"refused: {refused}"]


def judge_release(chart: Chart, case: Case, binary: Program) -> list[str]:
    release = chart.render(case, install=True)
    again = Chart(chart.path).render(case, install=True)
    found = [] if release.text == again.text else ["two renders differ"]
    found += broken(release) + tools.Kubernetes().judge(release) + binary.judge(release)
    custom = [o for o in release.objects if tools.is_custom(o)]
    if custom and os.environ.get("CHART_CRDS"):
        found += [f"custom resources: {f}" for f in tools.judge_custom([release])]
    return found
