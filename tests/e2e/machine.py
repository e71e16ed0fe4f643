"""The machine of the one-node cluster, on which the suite runs: containers' processes, CSI calls without kubelet."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from grpclib.client import Channel

from demo.orchestrator import Orchestrator, stubs
from tests.e2e.cluster import Cluster, run, until
from tests.e2e.objects import Object

KUBELET = Path("/var/lib/kubelet")
SOCKET = KUBELET / "csi-plugins" / "csi.juicefs.com" / "csi.sock"


def processes(pod: Object) -> list[int]:
    """The processes of the pod's containers, as the machine numbers them."""
    identifiers = [status["containerID"].partition("://")[2] for status in pod["status"]["containerStatuses"]]
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and any(name in (entry / "cgroup").read_text() for name in identifiers):
                found.append(int(entry.name))
    return found


def kill(pod: Object) -> None:
    """As the kernel does when memory is short: all of the pod's processes, no warning."""
    victims = processes(pod)
    assert victims, f"{pod['metadata']['name']} has no process"
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def stopped(cluster: Cluster, name: str) -> AsyncIterator[None]:
    """One of the cluster's own programs doesn't answer while inside."""
    pid = int((Path(cluster.machine) / "run" / f"{name}.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        await until(cluster.answers, within=60, what=f"{name} answers again")


@asynccontextmanager
async def kubelet() -> AsyncIterator[Orchestrator]:
    """Calls the node service as kubelet does, for pods that the cluster knows nothing of."""
    channel = Channel(path=str(SOCKET))
    controller, node = stubs(channel, channel)
    try:
        yield Orchestrator(controller=controller, node=node, pods=KUBELET, secrets={})
    finally:
        channel.close()


@asynccontextmanager
async def target(volume: str) -> AsyncIterator[Path]:
    """A target path of a pod that the cluster knows nothing of; its directories are removed afterwards.

    Not made here: kubelet removes such directories within two seconds, unless something is mounted there.
    """
    path = KUBELET / "pods" / str(uuid.uuid4()) / "volumes" / "kubernetes.io~csi" / volume / "mount"
    try:
        yield path
    finally:
        for directory in (path, *path.parents[:4]):
            with suppress(FileNotFoundError):
                directory.rmdir()


async def files(directory: Path) -> list[str]:
    """What lies below it on the machine, empty if it isn't there."""
    return (await run("find", str(directory), "-type", "f", check=False)).splitlines() if directory.is_dir() else []


async def remove_directories(directory: Path) -> None:
    """Empty ones only."""
    await asyncio.sleep(0)
    await run("find", str(directory), "-depth", "-type", "d", "-empty", "-delete", check=False)
