"""What every pod has to be, Jobs and tests included."""

import re

from ..model import Pod, Release, title
from . import rule


def _security(pod: Pod):
    """Pod Security Standard "restricted", and a read-only root."""
    spec, where = pod.spec, title(pod.owner)
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{where}: {key}"
    context = spec.get("securityContext", {})
    if context.get("runAsUser") == 0:
        yield f"{where}: runs as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: no seccomp profile"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"{where}: volume {volume['name']} is a path of the host"
    for container in pod.containers:
        own = container.get("securityContext", {})
        name = f"{where}/{container['name']}"
        if not own.get("runAsNonRoot", context.get("runAsNonRoot")):
            yield f"{name}: may run as root"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{name}: may gain privileges"
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            yield f"{name}: keeps capabilities"
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name}: adds capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: may write to its root"
        for port in container.get("ports", []):
            if "hostPort" in port:
                yield f"{name}: takes a port of the host"


@rule
def pods_are_restricted(release: Release):
    for pod in release.pods:
        yield from _security(pod)


@rule
def pods_have_no_token(release: Release):
    if release.values["serviceAccount"]["automountToken"]:
        return
    for pod in release.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{title(pod.owner)} mounts a token"
    for account in release.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)} mounts tokens"


@rule
def containers_have_requests_and_a_memory_limit(release: Release):
    for pod in release.pods:
        for container in pod.containers:
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= set(resources.get("requests", {})):
                yield f"{title(pod.owner)}/{container['name']}: no requests"
            if "memory" not in resources.get("limits", {}):
                yield f"{title(pod.owner)}/{container['name']}: no memory limit"


@rule
def images_are_pinned(release: Release):
    for pod in release.pods:
        for container in pod.containers:
            image = container["image"]
            tag = image.rsplit("/", 1)[-1].partition(":")[2]
            if tag == "latest" or not tag and "@sha256:" not in image:
                yield f"{title(pod.owner)}/{container['name']}: {image}"


@rule
def variables_stand_once_and_after_what_they_use(release: Release):
    for pod in release.pods:
        for container in pod.containers:
            seen: set[str] = set()
            for variable in container.get("env", []):
                name = variable["name"]
                if name in seen:
                    yield f"{title(pod.owner)}/{container['name']}: {name} stands twice"
                for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                    if used not in seen:
                        yield f"{title(pod.owner)}: {name} uses {used}, which comes later or never"
                seen.add(name)


@rule
def the_program_needs_no_shell(release: Release):
    for pod in release.pods:
        if pod.component in ("dev-postgres",):
            continue
        for container in pod.containers:
            if "command" in container and container["image"] == release.ring.containers[0]["image"]:
                yield f"{title(pod.owner)}/{container['name']} replaces the entry point"


@rule
def spreading_counts_the_nodes(release: Release):
    for spread in release.ring.spec.get("topologySpreadConstraints", []):
        labels = spread.get("labelSelector", {}).get("matchLabels", {})
        if labels.items() - release.ring.labels.items() or not labels:
            yield f"spreading over {spread['topologyKey']} counts other pods"


@rule
def nodes_start_and_stop_as_equals(release: Release):
    spec = release.ring.owner["spec"]
    if release.ring.owner["kind"] != "StatefulSet" or spec["podManagementPolicy"] != "Parallel":
        yield "nodes are no parallel StatefulSet"
    if "maxUnavailable" in spec.get("updateStrategy", {}).get("rollingUpdate", {}):
        yield "updateStrategy.maxUnavailable would replace several nodes at once"
