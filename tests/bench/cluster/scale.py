"""What the services that watch a whole cluster cost, on an API server of our own: memory, and claims a second.

There is no kubelet and no controller of Kubernetes: mount pods are objects of nodes that never answer.
"""

import asyncio
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from demo.driver import Driver, program
from demo.machine import background
from shared.identity import DRIVER_NAME
from shared.informer import Informer
from shared.kubernetes import CLAIMS, NODES, PERSISTENT_VOLUMES, PODS, SECRETS, STORAGE_CLASSES, Kubernetes
from shared.objects import PersistentVolume
from tests.api_server import BIN, ApiServer, api_server
from tests.bench import machine
from tests.bench.rows import Row, Skipped, Tell
from tests.e2e import objects
from tests.e2e.objects import Object

_VOLUMES: Final = 20_000
_PODS: Final = 2_000
_NODES: Final = 100
_CLAIMS: Final = 500
_AT_ONCE: Final = 16
_AGAIN: Final = 0.02
_PATIENCE: Final = 200.0
_SYSTEM: Final = "kube-system"
_CLASS: Final = "juicefs-sc"
_STEADY: Final = 3
"""Looks, a second each, that find nothing more until what a service holds is taken as all of it."""
_MORE: Final = 0.5  # MiB
_LIMITS: Final = {"mountpod": 160.0, "controller": 60.0}


async def memory(tell: Tell) -> list[Row]:
    """PSS of mountpod and controller with 20,000 volumes and claims, 2,000 mount pods and 100 nodes in the cluster."""
    async with services() as (driver, api):
        await _fill(api, tell)
        return [await _measured(driver, name, tell) for name in _LIMITS]


async def claims(tell: Tell) -> list[Row]:
    """500 claims at once until the controller has made their volumes, beside POSTs of as many PersistentVolumes."""
    async with services() as (driver, api):
        tell(f"{_CLAIMS} POSTs")
        began = time.perf_counter()
        await each(range(_CLAIMS), lambda number: api.create(PERSISTENT_VOLUMES, _volume(number, _id(number))))
        raw = _CLAIMS / (time.perf_counter() - began)
        secret = objects.secret("secret", _SYSTEM, database=0) | {"stringData": driver.secrets}
        await api.create(SECRETS, secret, namespace=_SYSTEM)
        parameters = objects.secret_parameters("secret", _SYSTEM)
        await api.create(STORAGE_CLASSES, objects.storage_class(_CLASS, parameters, case="bench"))
        await driver.start("controller")
        volumes = Informer(api, PERSISTENT_VOLUMES, PersistentVolume)
        async with background(volumes.run()):
            await volumes.synced.wait()
            await _made(api, volumes, 1)  # which formats the file system and starts its gateway
            rate = _CLAIMS / await _made(api, volumes, _CLAIMS, tell=tell)
    what = f"{_CLAIMS} claims at once, no other controller: PersistentVolumes made, beside plain POSTs of such"
    return [Row(name="scale-claims", what=what, unit="/s", samples=[rate], floors=[raw], times=2.5)]


async def _made(api: Kubernetes, volumes: Informer[PersistentVolume], count: int, *, tell: Tell | None = None) -> float:
    """Seconds until so many new claims have volumes."""
    before, began = len(volumes.objects), time.perf_counter()

    async def claim(number: int) -> None:
        annotations = {"volume.kubernetes.io/storage-provisioner": DRIVER_NAME}
        name = f"new-{count}-{number}"
        await api.create(
            CLAIMS, objects.claim(name, "default", storage_class=_CLASS, annotations=annotations), namespace="default"
        )

    await each(range(count), claim)
    async with asyncio.timeout(_PATIENCE):
        while (made := len(volumes.objects) - before) < count:
            if tell is not None:
                tell(f"{made}/{count} volumes")
            await asyncio.sleep(_AGAIN)
    return time.perf_counter() - began


@asynccontextmanager
async def services() -> AsyncIterator[tuple["Services", Kubernetes]]:
    """An API server, NATS, and nothing else yet."""
    missing = [name for name in ("etcd", "kube-apiserver") if not (BIN / name).exists()]
    if missing:
        raise Skipped(f"no {' and no '.join(missing)} in {BIN}: see $CLUSTER_HOME")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as base, api_server() as server:
        driver = Services(base=Path(base), server=server)
        async with Kubernetes.connect(kubeconfig=str(server.kubeconfig)) as api:
            try:
                await driver.start("nats")
                yield driver, api
            finally:
                for name in list(driver.running):
                    await driver.stop(name)


@dataclass(kw_only=True)
class Services(Driver):
    """Those that have a Kubernetes client, started from outside the cluster."""

    server: ApiServer
    words: dict[str, list[str]] = field(
        default_factory=lambda: {
            "mountpod": ["--runtime=pods", f"--mount-image={objects.IMAGE}"],
            "controller": ["--provisioner", "--resizer", f"--juicefs={program('juicefs')}"],
        }
    )

    def command(self, name: str) -> list[str]:
        if name not in self.words:
            return super().command(name)
        own = self.words[name] + ([f"--endpoint=unix://{self.socket(name)}"] if name == "controller" else [])
        common = ["--nats", self.nats_url, "--log-format=json", f"--health-address=127.0.0.1:{self.health_port(name)}"]
        where = [f"--kubeconfig={self.server.kubeconfig}", f"--namespace={_SYSTEM}"]
        return [program(f"juicefs-csi-{name}"), *own, *where, *common]


async def _measured(driver: Services, name: str, tell: Tell) -> Row:
    await driver.start(name)
    pid, seen, steady = driver.running[name].pid, 0.0, 0
    while steady < _STEADY:
        await asyncio.sleep(1)
        now = machine.pss(pid)
        steady = steady + 1 if abs(now - seen) < _MORE else 0
        seen = now
        tell(f"{name}: {now:.0f} MiB")
    peak = machine.peak(pid)
    await driver.stop(name)
    what = f"PSS of {name} with {_VOLUMES} volumes, {_PODS} mount pods, {_NODES} nodes; {peak:.0f} MiB at most"
    return Row(name=f"scale-{name}", what=what, unit="MiB", samples=[seen], most=_LIMITS[name])


async def _fill(api: Kubernetes, tell: Tell) -> None:
    await api.create(STORAGE_CLASSES, objects.storage_class(_CLASS, {}, case="bench"))
    await each(range(_NODES), lambda one: api.create(NODES, {"metadata": {"name": f"node-{one}"}}), tell)

    async def volume(number: int) -> None:
        claim = await api.create(CLAIMS, _claim(number), namespace="default")
        await api.create(PERSISTENT_VOLUMES, _volume(number, claim["metadata"]["uid"]))

    await each(range(_VOLUMES), volume, tell)
    await each(range(_PODS), lambda number: api.create(PODS, _mount_pod(number), namespace=_SYSTEM), tell)


async def each(numbers: Iterable[int], make: Callable[[int], Awaitable[object]], tell: Tell = lambda _: None) -> None:
    rest = iter(numbers)

    async def some() -> None:
        for number in rest:
            await make(number)
            tell(f"{number} objects")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(some())


def _id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def _claim(number: int) -> Object:
    annotations = {
        "pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes",
        "volume.beta.kubernetes.io/storage-provisioner": DRIVER_NAME,
        "volume.kubernetes.io/storage-provisioner": DRIVER_NAME,
    }
    labels = {"app.kubernetes.io/name": "database", "app.kubernetes.io/instance": f"database-{number}"}
    return objects.claim(
        f"data-database-{number}",
        "default",
        storage_class=_CLASS,
        volumeName=f"pvc-{_id(number)}",
        annotations=annotations,
        labels=labels,
    )


def _volume(number: int, claim: str) -> Object:
    """As the provisioner makes it."""
    name = f"pvc-{_id(number)}"
    secret = ("juicefs-secret", _SYSTEM)
    reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default", "uid": claim}
    annotations = {
        "pv.kubernetes.io/provisioned-by": DRIVER_NAME,
        "volume.kubernetes.io/provisioner-deletion-secret-name": secret[0],
        "volume.kubernetes.io/provisioner-deletion-secret-namespace": secret[1],
    }
    attributes = {
        **objects.secret_parameters(*secret),
        "subPath": name,
        "capacity": str(1 << 30),
        "juicefs/mount-cpu-limit": "2",
        "juicefs/mount-memory-limit": "4Gi",
    }
    made = objects.volume(name, secret=secret, attributes=attributes, annotations=annotations)
    spec = made["spec"] | {
        "capacity": {"storage": "1Gi"},
        "claimRef": reference | {"name": f"data-database-{number}"},
        "persistentVolumeReclaimPolicy": "Delete",
        "storageClassName": _CLASS,
        "mountOptions": ["cache-size=1024", "buffer-size=300"],
    }
    return {**made, "spec": spec}


def _mount_pod(number: int) -> dict[str, Any]:
    """As mountpod makes it, as far as it matters to who holds it."""
    name, node = f"pvc-{_id(number)}", f"node-{number % _NODES}"
    mount = f"{name}-abcdef"
    targets = {
        f"juicefs-{one}": f"/var/lib/kubelet/pods/{_id(one)}/volumes/kubernetes.io~csi/{name}/mount" for one in range(3)
    }
    metadata = objects.metadata(
        f"juicefs-{node}-{mount}",
        _SYSTEM,
        labels={"app.kubernetes.io/name": "juicefs-mount", "volume-id": name, "juicefs-hash": _id(number)},
        annotations={**targets, "juicefs-uniqueid": name, "juicefs.com/mount": mount},
    )
    made = objects.pod(metadata["name"], _SYSTEM, objects.pod_spec({}, objects.SLEEP, nodeName=node))
    return {**made, "metadata": metadata}
