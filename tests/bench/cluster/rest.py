"""Memory of every container of the driver, as it is: on the machine of the one-node cluster only."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Final

from shared.kubernetes import Kubernetes
from tests.bench import machine
from tests.bench.cluster.place import find, require
from tests.bench.rows import Row, Skipped, Tell
from tests.e2e.cluster import Cluster
from tests.e2e.objects import Object

_DRIVER: Final = "app.kubernetes.io/instance=juicefs-csi-driver"
_LIMITS: Final = {"juicefs-csi-node": 45.0, "juicefs-csi-mountpod": 160.0, "juicefs-csi-controller": 60.0}


async def containers(tell: Tell) -> list[Row]:
    """PSS and RSS of every container of the driver."""
    del tell
    kubeconfig = find()
    async with Kubernetes.connect(kubeconfig=kubeconfig) as api:
        cluster = Cluster(api=api, machine="")
        await require(cluster)
        pods = await cluster.pods(labels=_DRIVER)
    found: defaultdict[str, list[list[int]]] = defaultdict(list)
    for pod in pods:
        for status in pod["status"].get("containerStatuses", ()):
            if pids := _processes(status):
                found[f"{_workload(pod)}/{status['name']}"].append(pids)
    if not found:
        raise Skipped("the cluster's containers are not on this machine")
    return [_row(name, each) for name, each in sorted(found.items())]


def _row(name: str, each: list[list[int]]) -> Row:
    """Gateways to file systems, which come and go, are told apart."""
    workload = name.partition("/")[0]
    services = [[pid for pid in pids if not _is_client(pid)] for pids in each]
    rss = ", ".join(f"{sum(map(machine.rss, pids)):.0f}" for pids in services)
    gateways = [machine.pss(pid) for pids in each for pid in pids if _is_client(pid)]
    besides = f"; {len(gateways)} gateways beside them, {sum(gateways):.0f} MiB" if gateways else ""
    return Row(
        name=f"k8s-{workload.removeprefix('juicefs-csi-')}",
        what=f"PSS of each container of {workload} as it is; RSS {rss} MiB{besides}",
        unit="MiB",
        samples=[sum(map(machine.pss, pids)) for pids in services],
        most=_LIMITS.get(workload),
    )


def _is_client(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name == "juicefs"
    return False


def _workload(pod: Object) -> str:
    """What its pods have in common in their names."""
    labels = pod["metadata"]["labels"]
    return str(labels.get("app") or pod["metadata"]["name"].rpartition("-")[0])


def _processes(status: Object) -> list[int]:
    """The container's processes, as this machine numbers them."""
    identifier = status.get("containerID", "").partition("://")[2]
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if identifier and entry.name.isdigit() and identifier in (entry / "cgroup").read_text():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]
