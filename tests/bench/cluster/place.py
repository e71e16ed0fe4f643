"""A real cluster with the driver, reached by $KUBECONFIG, else the one-node cluster of this machine if it runs."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from shared.errors import DriverError
from shared.kubernetes import PERSISTENT_VOLUMES, PODS, Kubernetes
from tests.bench.rows import Skipped
from tests.e2e import objects
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, Cluster, is_ready, kubectl
from tests.e2e.objects import Object

_HOME: Final = Path(os.environ.get("CLUSTER_HOME", "/var/lib/one-node-cluster"))
_SUITE: Final = "juicefs-e2e"
_SECOND: Final = 1.0
_AGAIN: Final = 0.02
_LINES: Final = 150  # of 64 KiB at most
_T = TypeVar("_T")

STARTED: Final = ("sh", "-c", "trap 'exit 0' TERM; echo started; sleep infinity & wait")
"""What a pod runs whose start and end are measured: it says when it starts, and goes when it is told to."""


@dataclass(kw_only=True)
class Place:
    """A namespace of a measurement, with the words of the driver's services."""

    case: Case
    node: str
    _seen: set[str] = field(default_factory=set)

    @property
    def api(self) -> Kubernetes:
        return self.case.cluster.api

    async def rpc(self, method: str, volume: str) -> float:
        """Seconds of the next call of kubelet's for this volume, as the node service logged it."""

        async def answered() -> float | None:
            for pod in await self.case.cluster.nodes():
                for line in (await self._log(pod)).splitlines():
                    said = _json(line)
                    call = said.get("request_id", "")
                    is_it = (said.get("rpc"), said.get("volume"), said.get("code")) == (method, volume, "OK")
                    if is_it and call not in self._seen:
                        self._seen.add(call)
                        return float(said["seconds"])
            return None

        return await until(answered, what=f"{method} of {volume} in the node service's log")

    async def _log(self, pod: str) -> str:
        return await self.api.log(pod, namespace=SYSTEM, container="juicefs-plugin", lines=_LINES)

    async def create(self, pod: Object) -> float:
        """The time of day just before, which is anywhere between two ticks of kubelet's clock."""
        await asyncio.sleep(random.uniform(0, _SECOND))  # noqa: S311 - only to spread
        moment = time.time()
        await self.api.create(PODS, pod, namespace=self.case.namespace)
        return moment

    async def started(self, pod: str, *, word: str = "started") -> float:
        """The time of day at which the pod's container wrote this word, as its node noted it."""

        async def said() -> float | None:
            text = await kubectl("logs", "--timestamps", "--namespace", self.case.namespace, pod, check=False)
            for line in text.splitlines():
                moment, _, rest = line.partition(" ")
                if word in rest:
                    return datetime.fromisoformat(f"{moment[:26]}+00:00").timestamp()
            return None

        return await until(said, what=f"{word} in the log of pod {pod}", step=0.1)

    async def ready(self, labels: str, count: int) -> None:
        """So many pods of this selector are ready."""

        async def answer() -> bool:
            pods = await self.case.cluster.pods(namespace=self.case.namespace, labels=labels)
            return sum(map(is_ready, pods)) == count

        await until(answer, what=f"{count} ready pods")

    async def delete(self, pod: str, *, namespace: str = "") -> None:
        """Ask for it, and don't wait."""
        await self.api.delete(PODS, pod, namespace=namespace or self.case.namespace)

    async def gone(self, pod: str, *, namespace: str = "") -> None:
        where = namespace or self.case.namespace
        await until(lambda: self.case.cluster.is_gone(PODS, pod, namespace=where), what=f"pod {pod} gone")

    async def unused(self, volume: str) -> None:
        """No mount pod of the volume is left."""

        async def answer() -> bool:
            return not await self.case.cluster.mount_pods(volume)

        await until(answer, what=f"no mount pod of {volume}")

    async def volumes(self) -> list[Object]:
        """The PersistentVolumes of this namespace's claims."""
        found = (await self.api.list(PERSISTENT_VOLUMES))["items"]
        return [one for one in found if one["spec"].get("claimRef", {}).get("namespace") == self.case.namespace]

    def pod(self, name: str, claims: dict[str, str] | None = None, **rest: Any) -> Object:
        """One that says when it starts."""
        return objects.pod(name, self.case.namespace, objects.pod_spec(claims or {}, STARTED, **rest))


@asynccontextmanager
async def place(name: str) -> AsyncIterator[Place]:
    """A namespace, Secret and StorageClass in the cluster; nothing of it is left afterwards.

    Raises:
        Skipped: there is no cluster, or it has no driver, or not what the end-to-end tests need.
    """
    kubeconfig = find()
    async with Kubernetes.connect(kubeconfig=kubeconfig) as api:
        cluster = Cluster(api=api, machine=str(_HOME) if kubeconfig == str(_HOME / "kubeconfig") else "")
        node = await require(cluster)
        number = await cluster.exec(
            "deployment/redis", "redis-cli", "INCR", "case", namespace=_SUITE, container="redis"
        )
        database = int(number)
        case = Case(cluster=cluster, namespace=f"e{database}-bench-{name}", database=database)
        await kubectl("create", "namespace", case.namespace)
        try:
            await case.storage_class()
            yield Place(case=case, node=node)
        finally:
            await case.close()


def find() -> str:
    """The kubeconfig; kubectl finds it, too.

    Raises:
        Skipped: there is none.
    """
    own = _HOME / "kubeconfig"
    kubeconfig = os.environ.get("KUBECONFIG") or (str(own) if own.exists() else "")
    if not kubeconfig:
        raise Skipped("there is no cluster: set KUBECONFIG")
    os.environ["KUBECONFIG"] = kubeconfig
    beside = str(_HOME / "bin")
    if beside not in os.environ["PATH"].split(":"):
        os.environ["PATH"] += f":{beside}"
    return kubeconfig


async def require(cluster: Cluster) -> str:
    """The node that is measured: one with a node service that is ready."""
    try:
        nodes = [pod["spec"]["nodeName"] for pod in await cluster.pods(labels="app=juicefs-csi-node") if is_ready(pod)]
        redis = [pod for pod in await cluster.pods(namespace=_SUITE, labels="app=redis") if is_ready(pod)]
    except DriverError as error:
        raise Skipped(f"no cluster with the driver is reached by {os.environ['KUBECONFIG']}: {error}") from None
    if not nodes:
        raise Skipped(f"the cluster of {os.environ['KUBECONFIG']} has no node service that is ready")
    if not redis:
        raise Skipped("the cluster lacks the file systems' Redis: scripts/e2e apply")
    return str(nodes[0])


async def until(
    probe: Callable[[], Awaitable[_T | None]], *, what: str, step: float = _AGAIN, within: float = 60
) -> _T:
    """The first true answer, sooner than the end-to-end tests would see it."""
    try:
        async with asyncio.timeout(within):
            while not (answer := await probe()):
                await asyncio.sleep(step)
    except TimeoutError:
        raise TimeoutError(f"not within {within:.0f} s: {what}") from None
    return answer


def _json(line: str) -> dict[str, Any]:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}
