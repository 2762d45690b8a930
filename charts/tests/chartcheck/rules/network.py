"""Ports, Services and NetworkPolicies."""

from ..model import Release, matches, title
from . import rule


@rule
def ports_are_valid_and_named_alike(release: Release):
    for pod in release.pods:
        ports = [p for c in pod.containers for p in c.get("ports", [])]
        names = [p["name"] for p in ports if "name" in p]
        if len(names) != len(set(names)):
            yield f"{title(pod.owner)}: port names stand twice: {names}"
        for port in ports:
            if not 1 <= port["containerPort"] <= 65535:
                yield f"{title(pod.owner)}: port {port['containerPort']}"
            if len(port.get("name", "")) > 15:
                yield f"{title(pod.owner)}: port name {port['name']} is longer than 15"
        for container in pod.containers:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container.get(kind, {})
                port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if port is not None and port not in pod.ports:
                    yield f"{title(pod.owner)}: {kind} asks the port {port}, which is not there"
    for service in release.of("Service"):
        for port in service["spec"].get("ports", []):
            if len(port["name"]) > 15 or not 1 <= port["port"] <= 65535:
                yield f"{title(service)}: port {port['name']} {port['port']}"


@rule
def draining_nodes_stay_reachable_for_peers(release: Release):
    service = release.find("Service", release.ring.owner["spec"]["serviceName"])
    spec = service["spec"] if service else {}
    if not spec.get("publishNotReadyAddresses"):
        yield "the headless Service hides nodes that are not ready"
    if "peer" in release.ring.ports and "peer" not in [p["name"] for p in spec.get("ports", [])]:
        yield "the headless Service has no peer port"


@rule
def peer_and_admin_ports_are_never_exposed(release: Release):
    for service in release.of("Service"):
        if service["spec"].get("clusterIP") == "None":
            continue
        for port in service["spec"]["ports"]:
            if port["targetPort"] in ("peer", "admin"):
                yield f"{title(service)} exposes the {port['targetPort']} port"


@rule
def policies_select_pods_and_ports_that_exist(release: Release):
    for policy in release.of("NetworkPolicy"):
        spec = policy["spec"]
        selected = [p for p in release.pods if matches(spec["podSelector"], p.labels)]
        by_helm = policy["metadata"]["labels"].get("app.kubernetes.io/managed-by") == "Helm"
        if by_helm and len(selected) != 1:
            yield f"{title(policy)} selects {[title(p.owner) for p in selected]}"
            continue
        for rule_ in spec.get("ingress", []):
            if "from" in rule_ and not rule_["from"] or "from" not in rule_:
                yield f"{title(policy)}: a rule without from lets everybody in"
            for port in rule_.get("ports", []):
                if isinstance(port["port"], str) and port["port"] not in selected[0].ports:
                    yield f"{title(policy)}: its pods have no port {port['port']}"
            if not rule_.get("ports"):
                yield f"{title(policy)}: a rule without ports opens all"


@rule
def only_nodes_reach_the_peer_port(release: Release):
    ring = release.ring
    for policy in release.of("NetworkPolicy"):
        if not matches(policy["spec"]["podSelector"], ring.labels):
            continue
        for rule_ in policy["spec"].get("ingress", []):
            if "peer" not in [p["port"] for p in rule_["ports"]]:
                continue
            for peer in rule_["from"]:
                allowed = [
                    p for p in release.pods if matches(peer.get("podSelector", {}), p.labels)
                ]
                if set(peer) != {"podSelector"} or [p.owner for p in allowed] != [ring.owner]:
                    yield f"{title(policy)} lets others than nodes to the peer port"


@rule
def nodes_of_a_ring_prove_themselves(release: Release):
    env = {e["name"] for e in release.ring.container("ringspan")["env"]}
    toml = release.toml
    if "peer" not in release.ring.ports:
        if not toml["peer_listen"].startswith("127.0.0.1:"):
            yield "the peer port is open though there is no ring"
    elif not ({"RINGSPAN_PEER_TOKEN", "RINGSPAN_PEER_TOKEN_FILE"} & env or "peer_cert" in toml):
        if not toml.get("peer_allow_plaintext"):
            yield "nodes have neither token nor certificate"


@rule
def disruption_budgets_hold_nodes_only(release: Release):
    for pdb in release.of("PodDisruptionBudget"):
        spec = pdb["spec"]
        held = [p for p in release.pods if matches(spec["selector"], p.labels)]
        if [p.owner for p in held] != [release.ring.owner]:
            yield f"{title(pdb)} matches {[title(p.owner) for p in held]}"
        for key in ("maxUnavailable", "minAvailable"):
            value = spec.get(key)
            if isinstance(value, str) and not value.endswith("%"):
                yield f"{title(pdb)}: {key} is the string {value!r}"
        if len({"maxUnavailable", "minAvailable"} & set(spec)) != 1:
            yield f"{title(pdb)} needs one of maxUnavailable and minAvailable"
