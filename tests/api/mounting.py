"""mountpod's pods on a real API server; the node, kubelet and the workloads are a test's."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import betterproto2

from services.mountpod.cluster import Cluster
from services.mountpod.configured import ConfigurationFile
from services.mountpod.fleet import Fleet
from services.mountpod.node import NodeService
from services.mountpod.notices import Notices
from services.mountpod.planner import Planner, Volumes
from services.mountpod.pod_index import PodIndex
from services.mountpod.pod_maker import PodMaker
from services.mountpod.pod_state import State, verdict
from services.mountpod.pods import Pods
from services.mountpod.reconcile import Reconcile
from services.mountpod.service import MountpodService
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, MountFailed, RestartReply, RestartRequest, Workload
from shared.errors import AlreadyExists, NotFound
from shared.filesystem import credentials_digest
from shared.identity import DRIVER_NAME
from shared.kubernetes import EVENTS, NAMESPACES, PERSISTENT_VOLUMES, PODS, SECRETS, Kubernetes
from shared.layout import Layout
from shared.objects import Pod
from shared.pod_settings import PodSettings
from shared.recorder import Recorder
from tests.fakes.bus import MemoryBus
from tests.fakes.node import FakeNode
from tests.waiting import until

Object = dict[str, Any]
SECRET = {"name": "demo", "metaurl": "redis://:marker-1@redis/1", "storage": "s3", "bucket": "https://b.example"}
LABEL = "app.kubernetes.io/name=juicefs-mount"


@dataclass
class Stage:
    """One node's part of a cluster, in a namespace of its own."""

    api: Kubernetes
    name: str = field(default_factory=lambda: f"t{token_hex(4)}")
    is_led: bool = False

    def __post_init__(self) -> None:
        self.bus = MemoryBus()
        self.node = FakeNode(self.bus)
        self.node_bus = self.bus.beside(service="node")
        self.handle = f"pvc-{self.name}"
        self.cluster = self.assemble()

    def assemble(self) -> Cluster:
        """What a mountpod has that leads, without its node's part."""
        self.fleet = Fleet(self.api)
        index = PodIndex(self.api, namespace=self.name)
        self.recorder = Recorder(self.api, component="mountpod")
        volumes = Volumes(self.api, driver=DRIVER_NAME)
        planner = Planner(
            self.api,
            volumes=volumes,
            defaults=PodSettings(image="mount:1"),
            node_labels=self.fleet.labels,
            namespace=self.name,
        )
        return Cluster(
            bus=self.bus,
            configuration=ConfigurationFile(None, lambda _: None),
            planner=planner,
            index=index,
            maker=PodMaker(self.api, namespace=self.name, index=index, layout=Layout()),
            notices=Notices(self.api, self.recorder),
        )

    @asynccontextmanager
    async def leading(self, kind: type[Pods] = Pods) -> AsyncIterator[Pods]:
        """One mountpod from its start to its end; the next one starts with nothing."""
        self.cluster = self.assemble()
        service = NodeService(bus=self.bus, node="n1")
        pods = kind(node="n1", cluster=self.cluster, service=service)
        self.reconcile = Reconcile(runtime=pods, node=service)
        self.bus._listeners.clear()
        MountpodService(runtime=pods, reconcile=self.reconcile, bus=self.bus, node="n1").start()
        self.bus.on_event("juicefs.event.node.n1.>", pods.hear)
        parts = (self.cluster.planner.volumes, self.cluster.index, self.recorder, pods, self.reconcile)
        tasks = [asyncio.create_task(part.run()) for part in parts]
        self.is_led = True
        try:
            async with asyncio.timeout(10):
                await self.cluster.planner.volumes.synced.wait()
                await self.cluster.index.synced.wait()
            yield pods
        finally:
            self.is_led = False
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def prepare(self) -> None:
        """A namespace, and a volume with its Secret."""
        await self.api.create(NAMESPACES, {"metadata": {"name": self.name}})
        await self.make_secret()
        await self.make_volume()

    async def make_secret(self, **changes: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in {**SECRET, **changes}.items()}
        body = {"metadata": {"name": "fs"}, "data": data}
        try:
            await self.api.create(SECRETS, body, namespace=self.name)
        except AlreadyExists:
            await self.api.patch(SECRETS, "fs", body, namespace=self.name)

    async def make_volume(self, name: str = "", **spec: Any) -> Object:
        """Its attributes, options and so on are `spec`; its handle is this stage's."""
        csi: Object = {"driver": DRIVER_NAME, "volumeHandle": self.handle, "fsType": "juicefs"}
        csi |= {"nodePublishSecretRef": {"name": "fs", "namespace": self.name}, **spec.pop("csi", {})}
        whole = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "csi": csi, **spec}
        return await self.api.create(PERSISTENT_VOLUMES, {"metadata": {"name": name or self.handle}, "spec": whole})

    async def remove_volume(self, name: str = "") -> None:
        """At once: nobody here would take the finalizer away that guards its claim."""
        await self.api.patch(PERSISTENT_VOLUMES, name or self.handle, {"metadata": {"finalizers": []}})
        await self.api.delete(PERSISTENT_VOLUMES, name or self.handle)

    async def ensure(self, pod: str = "p1", **secrets: str) -> str:
        """What the node asks for a publish; the mount's name."""
        request = EnsureRequest(
            volume_id=self.handle,
            credentials=credentials_digest({**SECRET, **secrets}),
            workload=Workload(namespace=self.name, name=pod, uid=f"uid-{pod}"),
            target=self.target(pod),
        )
        return (await self.bus.request("juicefs.rpc.mountpod.n1.Ensure", request, EnsureReply, timeout=10)).mount

    def target(self, pod: str = "p1") -> str:
        return f"/var/lib/kubelet/pods/uid-{pod}/volumes/kubernetes.io~csi/{self.handle}/mount"

    async def serve(self, pod: str = "p1") -> str:
        """A publish to its end: the client runs, and its target is bound."""
        name = await self.ensure(pod)
        await self.kubelet_runs()
        self.bind(name, pod)
        return name

    def say(self, what: betterproto2.Message, name: str) -> None:
        """What the node says."""
        self.node_bus.say(what, mount=name)

    def bind(self, name: str, pod: str = "p1") -> None:
        self.node.devices[name] = "0:50"
        self.node.targets.setdefault(name, []).append(self.target(pod))

    # ---- kubelet's part

    async def pods(self) -> list[Object]:
        found: list[Object] = (await self.api.list(PODS, namespace=self.name, labels=LABEL))["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    async def restart(self, name: str) -> None:
        await self.bus.request("juicefs.rpc.mountpod.n1.Restart", RestartRequest(mount=name), RestartReply, timeout=30)

    async def kubelet_says(self, *, pod: Object | None = None, **status: Any) -> None:
        """Of the pod, or of all."""
        for one in [pod] if pod else await self.pods():
            await self.api.patch(
                PODS, one["metadata"]["name"], {"status": status}, namespace=self.name, subresource="status"
            )

    async def kubelet_runs(self) -> None:
        """Every pod that is to run, runs; the index has seen it."""
        for pod in await self.pods():
            if "deletionTimestamp" not in pod["metadata"]:
                await self.kubelet_says(pod=pod, **container(running={}))
        await until(lambda: not self.is_led or all(_runs(pod) for pod in self.known()))

    def known(self) -> list[Pod]:
        """What the index has."""
        return [pod for mount in self.cluster.index._pods.values() for pod in mount.values()]

    async def kubelet_ends(self) -> None:
        """Every pod that is to go, is gone."""
        for pod in await self.pods():
            if "deletionTimestamp" in pod["metadata"]:
                await self.remove(pod)

    async def remove(self, pod: Object) -> None:
        """At once, as after a node's end."""
        with suppress(NotFound):
            await self.api.delete(PODS, pod["metadata"]["name"], namespace=self.name, grace=0)

    async def until_pods(self, number: int, *, within: float = 10.0) -> list[Object]:
        """Wait for this many that are not leaving."""
        async with asyncio.timeout(within):
            while True:
                living = [pod for pod in await self.pods() if "deletionTimestamp" not in pod["metadata"]]
                if len(living) == number:
                    return living
                await asyncio.sleep(0.02)

    async def events(self, reason: str) -> list[str]:
        """Messages of the Events with this reason, and whom they are about."""
        found = (await self.api.list(EVENTS, namespace=self.name))["items"]
        return [f"{one['involvedObject']['name']}: {one['message']}" for one in found if one["reason"] == reason]

    def failures(self) -> list[MountFailed]:
        return [said.mount_failed for said in self.bus.said if said.mount_failed is not None]

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The requests that are sent meanwhile, as `VERB plural`."""
        server, seen = self.api._server, list[str]()
        call = server.call

        async def counting(request: Any) -> bytes:
            what = request.path.split("/namespaces/", 1)[-1].split("/")
            plural = next((part for part in what if part in _PLURALS), request.path)
            is_list = request.method == "GET" and what[-1] == plural
            seen.append(f"{'LIST' if is_list else request.method} {plural}")
            return await call(request)

        server.call = counting  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            server.call = call  # type: ignore[method-assign]


_PLURALS = {"pods", "secrets", "events", "persistentvolumeclaims", "persistentvolumes", "nodes"}


def _runs(pod: Pod) -> bool:
    return bool(pod.metadata.deletion_timestamp) or verdict(pod).state is State.RUNNING


def container(*, restarts: int = 0, phase: str = "Running", **state: Any) -> Object:
    """A pod's status with the client's container in this state."""
    status = {"name": "jfs-mount", "image": "mount:1", "imageID": "", "ready": False, "restartCount": restarts}
    return {"phase": phase, "containerStatuses": [{**status, "state": state}]}


@asynccontextmanager
async def staged(api: Kubernetes) -> AsyncIterator[Stage]:
    """A stage; what it made that has no namespace goes."""
    stage = Stage(api)
    await stage.prepare()
    try:
        yield stage
    finally:
        for pod in await stage.pods():
            if pod["metadata"].get("finalizers"):
                await api.patch(PODS, pod["metadata"]["name"], {"metadata": {"finalizers": []}}, namespace=stage.name)
            await stage.remove(pod)
        for volume in (await api.list(PERSISTENT_VOLUMES))["items"]:
            if volume["spec"].get("csi", {}).get("volumeHandle") == stage.handle:
                await stage.remove_volume(volume["metadata"]["name"])
