"""The driver's own pods and configuration, as its admin handles them. Whatever uses it runs alone."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from shared.kubernetes import CONFIG_MAPS, LEASES, PODS
from tests.e2e import machine
from tests.e2e.cluster import SYSTEM, Cluster, is_ready, kubectl, until
from tests.e2e.objects import Object

NODE, MOUNTPOD, CONTROLLER = "juicefs-csi-node", "juicefs-csi-mountpod", "juicefs-csi-controller"
_CONFIG = "juicefs-csi-driver-config"
_CONFIG_FILE = "/etc/config/config.yaml"


async def upgrade(volume: str) -> str:
    """The client of this volume is replaced by one made from today's configuration, without a failed call."""
    command = ("juicefs-csi-mount", "upgrade", "--volume", volume)
    return await kubectl("exec", "--namespace", SYSTEM, f"deployment/{MOUNTPOD}", "--", *command, deadline=120)


async def pod(cluster: Cluster, app: str, *, within: float = 60.0) -> Object:
    """One of this service that is ready: of mountpod, the one that leads."""

    async def answer() -> Object | None:
        pods = [pod for pod in await cluster.pods(labels=f"app={app}") if is_ready(pod)]
        if app == MOUNTPOD:
            leader = (await cluster.api.get(LEASES, "mountpod.juicefs.com", namespace=SYSTEM))["spec"]["holderIdentity"]
            pods = [pod for pod in pods if pod["metadata"]["name"] in leader]
        return pods[0] if pods else None

    return await until(answer, within=within, what=f"a ready pod of {app}")


async def killed(cluster: Cluster, app: str) -> None:
    """SIGKILL for one (of mountpod: the leader). One that was killed before is replaced first: kubelet lets it wait."""
    victim = await pod(cluster, app)
    if any(status["restartCount"] for status in victim["status"]["containerStatuses"]):
        uid = victim["metadata"]["uid"]
        await cluster.api.delete(PODS, victim["metadata"]["name"], namespace=SYSTEM, uid=uid)
        await until(partial(_is_gone, cluster, app, uid), what="it ends")
        victim = await pod(cluster, app)
    machine.kill(victim)


async def _is_gone(cluster: Cluster, app: str, uid: str) -> bool:
    """Its successor may have its name."""
    return uid not in [found["metadata"]["uid"] for found in await cluster.pods(labels=f"app={app}")]


async def ready(cluster: Cluster, *apps: str, within: float = 60.0) -> None:
    """All pods of these services."""

    async def answer() -> bool:
        pods = [pod for app in apps for pod in await cluster.pods(labels=f"app={app}")]
        return bool(pods) and all(is_ready(pod) for pod in pods)

    await until(answer, within=within, what=f"{apps} ready")


@asynccontextmanager
async def configured(cluster: Cluster, *patches: Object, **rest: Any) -> AsyncIterator[None]:
    """`mountPodPatch` of the driver's configuration while inside, seen by every replica of mountpod."""
    before = (await cluster.api.get(CONFIG_MAPS, _CONFIG, namespace=SYSTEM))["data"]["config.yaml"]
    try:
        await _configure(cluster, json.dumps({"mountPodPatch": patches, **rest}))
        yield
    finally:
        await _configure(cluster, before)


async def _configure(cluster: Cluster, text: str) -> None:
    await cluster.api.patch(CONFIG_MAPS, _CONFIG, {"data": {"config.yaml": text}}, namespace=SYSTEM)
    for replica in await cluster.pods(labels=f"app={MOUNTPOD}"):
        name = replica["metadata"]["name"]
        # A change of the pod makes kubelet look at its volumes at once.
        nudge = {"metadata": {"annotations": {"e2e/configured": f"{time.time()}"}}}
        await cluster.api.patch(PODS, name, nudge, namespace=SYSTEM)
        await until(partial(_reads, cluster, name, text), within=90, what="the configuration arrives")


async def _reads(cluster: Cluster, name: str, text: str) -> bool:
    return (await cluster.exec(name, "cat", _CONFIG_FILE)).strip() == text.strip()


@asynccontextmanager
async def without_bus(cluster: Cluster) -> AsyncIterator[None]:
    """NATS is away while inside."""
    try:
        await _scale_bus(cluster, 0)
        yield
    finally:
        await _scale_bus(cluster, 1)


async def _scale_bus(cluster: Cluster, replicas: int) -> None:
    await kubectl("scale", "--namespace", SYSTEM, "statefulset/juicefs-csi-nats", f"--replicas={replicas}")

    async def answer() -> bool:
        pods = await cluster.pods(labels="app=juicefs-csi-nats")
        return len(pods) == replicas and all(is_ready(pod) for pod in pods)

    await until(answer, what=f"{replicas} pods of NATS")
