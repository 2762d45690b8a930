"""Times that must fit into each other, read from what was rendered."""

from ..model import Release, seconds, title
from . import rule


@rule
def the_grace_period_holds_the_whole_drain(release: Release):
    toml, spec = release.toml, release.ring.spec
    hook = release.ring.container("ringspan").get("lifecycle", {}).get("preStop", {})
    if hook and set(hook) != {"sleep"}:
        yield f"preStop needs more than the kubelet: {hook}"
    sleep = hook.get("sleep", {}).get("seconds", 0)
    if hook and sleep < 1:
        yield "preStop sleeps for nothing"
    parts = [seconds(toml[k]) for k in ("drain_dwell", "drain_timeout", "drain_cleanup")]
    need, grace = sleep + sum(parts) + 5, spec["terminationGracePeriodSeconds"]
    if grace < need:
        yield f"{grace} s of grace for a drain of {need} s"
    if sleep >= grace:
        yield f"preStop sleeps {sleep} s of {grace} s"


@rule
def a_lease_survives_two_lost_heartbeats(release: Release):
    toml = release.toml
    ttl = seconds(toml["lease_ttl"])
    margin = seconds(toml["lease_margin"]) if "lease_margin" in toml else max(0.25, ttl / 5)
    if 3 * seconds(toml["heartbeat_interval"]) > ttl - margin:
        yield "three heartbeats do not fit into the lease"


@rule
def pods_wait_longer_than_migrations_may_take(release: Release):
    gate = release.ring.container("wait-for-schema")
    limit = seconds(gate["args"][gate["args"].index("--timeout") + 1])
    for job in release.of("Job"):
        deadline = job["spec"].get("activeDeadlineSeconds")
        if deadline is None or limit < deadline:
            yield f"{title(job)} may take {deadline} s, pods wait {limit} s"
        if job["spec"]["template"]["spec"]["restartPolicy"] != "Never":
            yield f"{title(job)}: logs of failed tries are lost"


@rule
def one_node_leaves_in_a_drains_time(release: Release):
    grace = release.ring.spec["terminationGracePeriodSeconds"]
    for hpa in release.of("HorizontalPodAutoscaler"):
        down = hpa["spec"]["behavior"]["scaleDown"]
        for policy in down["policies"]:
            if policy["value"] != 1 or policy["periodSeconds"] < grace:
                yield f"{title(hpa)}: {policy} does not wait for a drain of {grace} s"
            if policy["periodSeconds"] > 1800:
                yield f"{title(hpa)}: periodSeconds is at most 1800"


@rule
def the_pools_fit_into_the_budget(release: Release):
    pool = release.values["database"]["pool"]
    if pool["budget"] is None:
        return
    hpas = release.of("HorizontalPodAutoscaler")
    most = hpas[0]["spec"]["maxReplicas"] if hpas else release.ring.owner["spec"]["replicas"]
    need = most * (release.toml["database_max_connections"] + 2) + pool["reserve"]
    if need > pool["budget"]:
        yield f"{need} connections of {pool['budget']}"
