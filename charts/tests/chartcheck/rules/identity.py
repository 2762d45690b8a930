"""Names, references and selectors."""

from collections import Counter

from ..model import Object, Release, matches, title
from . import rule

WORKLOADS = ("StatefulSet", "Deployment", "Job")


@rule
def names_are_unique_and_short(release: Release):
    named = Counter((o["apiVersion"], o["kind"], o["metadata"]["name"]) for o in release.objects)
    yield from (f"{kind}/{name} stands {n} times" for (_, kind, name), n in named.items() if n > 1)
    for o in release.objects:
        name, limit = o["metadata"]["name"], 52 if o["kind"] == "StatefulSet" else 63
        if len(name) > limit:
            yield f"{title(o)} has {len(name)} characters, more than {limit}"
        if "namespace" not in o["metadata"]:
            yield f"{title(o)} names no namespace"


@rule
def workloads_select_their_own_pods(release: Release):
    for o in release.of("StatefulSet", "Deployment"):
        labels = o["spec"]["template"]["metadata"]["labels"]
        if not matches(o["spec"]["selector"], labels):
            yield f"{title(o)} does not select its own pods"
        others = [p for p in release.pods if p.owner is not o]
        for pod in others:
            if matches(o["spec"]["selector"], pod.labels):
                yield f"{title(o)} also selects pods of {title(pod.owner)}"


@rule
def services_select_one_workload_and_a_port_of_it(release: Release):
    for service in release.of("Service"):
        selected = [
            p for p in release.pods if matches({"matchLabels": service["spec"]["selector"]}, p.labels)
        ]
        if len(selected) != 1:
            names = [title(p.owner) for p in selected]
            yield f"{title(service)} selects {names or 'nothing'}"
            continue
        for port in service["spec"].get("ports", []):
            target = port.get("targetPort", port["port"])
            known = selected[0].ports
            if target not in known and target not in known.values():
                yield f"{title(service)}: no container has a port {target}"


@rule
def monitors_find_their_targets(release: Release):
    for monitor in release.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]
        found = [s for s in release.of("Service") if matches(selector, s["metadata"]["labels"])]
        ports = [p["name"] for s in found for p in s["spec"]["ports"]]
        if len(found) != 1 or monitor["spec"]["endpoints"][0]["port"] not in ports:
            yield f"{title(monitor)} finds {[title(s) for s in found]} with ports {ports}"
    for monitor in release.of("PodMonitor"):
        found = [p for p in release.pods if matches(monitor["spec"]["selector"], p.labels)]
        port = monitor["spec"]["podMetricsEndpoints"][0]["port"]
        if len(found) != 1 or port not in found[0].ports:
            yield f"{title(monitor)} finds {[title(p.owner) for p in found]}, port {port}"


@rule
def references_within_the_release_exist(release: Release):
    for pod in release.pods:
        account = pod.spec.get("serviceAccountName", "default")
        if account != "default" and not release.find("ServiceAccount", account):
            if release.values["serviceAccount"]["create"]:
                yield f"{title(pod.owner)}: no ServiceAccount {account}"
        volumes = {v["name"]: v for v in pod.spec.get("volumes", [])}
        for claim in pod.owner["spec"].get("volumeClaimTemplates", []):
            volumes[claim["metadata"]["name"]] = claim
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{title(pod.owner)}/{container['name']}: no volume {mount['name']}"
    for hpa in release.of("HorizontalPodAutoscaler"):
        target = hpa["spec"]["scaleTargetRef"]
        workload = release.find(target["kind"], target["name"])
        if workload is None:
            yield f"{title(hpa)} scales {target['name']}, which is not there"
        elif "replicas" in workload["spec"]:
            yield f"{title(hpa)}: {target['name']} has replicas too"
    for o in release.of("StatefulSet"):
        service = release.find("Service", o["spec"]["serviceName"])
        if service is None or service["spec"].get("clusterIP") != "None":
            yield f"{title(o)}: {o['spec']['serviceName']} is no headless Service"


@rule
def routes_lead_to_the_client_port(release: Release):
    backends: list[tuple[Object, str, object]] = []
    for ingress in release.of("Ingress"):
        for host in ingress["spec"]["rules"]:
            for path in host["http"]["paths"]:
                service = path["backend"]["service"]
                port = service["port"].get("name") or service["port"].get("number")
                backends.append((ingress, service["name"], port))
    for route in release.of("HTTPRoute"):
        for target in route["spec"]["rules"]:
            backends += [(route, b["name"], b["port"]) for b in target["backendRefs"]]
    for o, name, port in backends:
        service = release.find("Service", name)
        ports = service["spec"]["ports"] if service else []
        if not any(p["targetPort"] == "http" and port in (p["name"], p["port"]) for p in ports):
            yield f"{title(o)} leads to {name}:{port}, which is not the client port"


@rule
def hooks_need_nothing_that_comes_later(release: Release):
    for o in release.of("Job"):
        hooks = o["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        if "post-" in hooks:
            yield f"{title(o)}: {hooks} deadlocks with gated pods under --wait"
        if not hooks or not release.install:
            continue
        spec = o["spec"]["template"]["spec"]
        needed = {spec.get("serviceAccountName", "default")}
        needed |= {
            (e.get("valueFrom", {}).get("secretKeyRef") or {}).get("name")
            for c in spec["containers"]
            for e in c.get("env", [])
        }
        for volume in spec.get("volumes", []):
            needed.add(volume.get("secret", {}).get("secretName"))
            needed.add(volume.get("configMap", {}).get("name"))
        made = {
            x["metadata"]["name"] for x in release.of("Secret", "ServiceAccount", "ConfigMap")
        }
        made |= {x["spec"]["target"]["name"] for x in release.of("ExternalSecret")}
        made |= {f"{x['metadata']['name']}-{end}" for x in release.of("Cluster") for end in ("app", "ca")}
        for name in sorted((needed & made) - {None, "default"}):
            yield f"{title(o)}: a first install would run it before {name} exists"
        if release.find("StatefulSet", f"{release.ring.owner['metadata']['name']}-postgres"):
            yield f"{title(o)}: a first install would run it before its database exists"
