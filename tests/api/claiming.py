"""A provisioner on a real API server with real file systems, and the parts of Kubernetes that don't run here."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import betterproto2
import pytest

from services.controller import leading
from services.controller.cluster import Cluster
from services.controller.credentials import Credentials
from services.controller.leading import Duties
from services.controller.store import Store
from shared.domain import Subpath
from shared.errors import NotFound
from shared.filesystem import Filesystem
from shared.kubernetes import CLAIMS, EVENTS, PERSISTENT_VOLUMES, SECRETS, STORAGE_CLASSES, Kind, Kubernetes
from shared.metrics import Metrics
from shared.recorder import Recorder
from tests.api_server import ApiServer
from tests.integration.controlling import Controller, controlling
from tests.waiting import until

VERBS = ("get", "list", "pages", "create", "patch", "replace", "delete", "watch")
MARK = "s3cr3t-mark"
Object = dict[str, Any]
T = TypeVar("T")


@dataclass
class Stage:
    """One driver's part of a cluster. Its name is its own, so that tests don't meet."""

    api: Kubernetes
    controller: Controller
    secret: dict[str, str]
    name: str = field(default_factory=lambda: f"t{token_hex(4)}")
    said: list[betterproto2.Message] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    driver: str = ""

    def __post_init__(self) -> None:
        self.driver = self.driver or f"{self.name}.example.com"

    def say(self, what: betterproto2.Message, *, volume_id: str = "", mount: str = "") -> None:
        self.said.append(what)

    async def serve(self, api: Kubernetes | None = None) -> None:
        """A controller's whole life, without the Lease: one that was killed would keep it for a while."""
        duties = Duties(provisions=True, resizes=True, driver=self.driver, workers=20)
        api = api or self.api
        recorder = Recorder(self.api, component=self.driver)
        store = Store(volumes=self.controller.restarted(), credentials=Credentials(api), say=self.say)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(recorder.run())
            cluster = Cluster(api, recorder=recorder, driver=self.driver)
            await leading.serve(cluster, store, duties, metrics=self.metrics)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.serve())
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def make_secret(self, name: str = "", /, **changes: str) -> str:
        name = name or self.name
        data = {key: base64.b64encode(text.encode()).decode() for key, text in (self.secret | changes).items()}
        await self.api.create(SECRETS, {"metadata": {"name": name}, "data": data}, namespace="default")
        return name

    async def make_class(
        self, parameters: dict[str, str] | None = None, *, name: str = "", more: Object | None = None
    ) -> str:
        """With the six parameters of behaviour.md C.2 and those that are given; `more` is of the class itself."""
        name = name or self.name
        keys = {
            f"csi.storage.k8s.io/{purpose}-secret-{part}": value
            for purpose in ("provisioner", "node-publish", "controller-expand")
            for part, value in (("name", self.name), ("namespace", "default"))
        }
        body = {
            "metadata": {"name": name},
            "provisioner": self.driver,
            "allowVolumeExpansion": True,
            "parameters": {key: value for key, value in (keys | (parameters or {})).items() if value},
        }
        await self.api.create(STORAGE_CLASSES, body | (more or {}))
        return name

    async def claim(self, name: str, *, size: str = "1Gi", spec: Object | None = None, **metadata: Any) -> str:
        """A claim as it is when the controller manager has seen it; its PersistentVolume's name."""
        asked = {"volume.kubernetes.io/storage-provisioner": self.driver} | metadata.pop("annotations", {})
        body = {
            "metadata": {"name": self.of(name), "annotations": asked} | metadata,
            "spec": {
                "storageClassName": self.name,
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": size}},
            }
            | (spec or {}),
        }
        made = await self.api.create(CLAIMS, body, namespace="default")
        return f"pvc-{made['metadata']['uid']}"

    def of(self, name: str) -> str:
        """The full name of a claim."""
        return f"{self.name}-{name}"

    async def bound(self, name: str, **more: Any) -> str:
        """A claim with its volume, both as the controller manager leaves them."""
        volume = await self.claim(name, **more)
        await self.bind(name, await self.volume(volume))
        return volume

    async def bind(self, name: str, volume: Object) -> None:
        body = {"spec": {"volumeName": volume["metadata"]["name"]}}
        await self.api.patch(CLAIMS, self.of(name), body, namespace="default")
        status = {"phase": "Bound", "capacity": volume["spec"]["capacity"], "accessModes": ["ReadWriteMany"]}
        await self.api.patch(CLAIMS, self.of(name), {"status": status}, namespace="default", subresource="status")
        await self.set_phase(volume["metadata"]["name"], "Bound")

    async def set_phase(self, volume: str, phase: str) -> None:
        await self.api.patch(PERSISTENT_VOLUMES, volume, {"status": {"phase": phase}}, subresource="status")

    async def unclaim(self, name: str, volume: str = "") -> None:
        """Delete a claim, as it ends when nobody uses it; its volume becomes Released, and nothing protects that."""
        with suppress(NotFound):
            await self.api.delete(CLAIMS, self.of(name), namespace="default")
            await self.api.patch(CLAIMS, self.of(name), {"metadata": {"finalizers": None}}, namespace="default")
        if volume:
            await self.unprotect(volume)
            await self.set_phase(volume, "Released")

    async def unprotect(self, volume: str) -> None:
        got = await self.api.get(PERSISTENT_VOLUMES, volume)
        kept = [one for one in got["metadata"].get("finalizers", ()) if one != "kubernetes.io/pv-protection"]
        await self.api.patch(PERSISTENT_VOLUMES, volume, {"metadata": {"finalizers": kept}})

    async def volume(self, name: str) -> Object:
        """The PersistentVolume, as soon as it is there."""
        return await eventually(lambda: self.find(PERSISTENT_VOLUMES, name))

    async def find(self, kind: Kind, name: str) -> Object | None:
        try:
            return await self.api.get(kind, name, namespace="default" if kind.is_namespaced else "")
        except NotFound:
            return None

    async def is_gone(self, volume: str) -> bool:
        return await self.find(PERSISTENT_VOLUMES, volume) is None

    async def gone(self, volume: str) -> None:
        """Wait until there is no such PersistentVolume."""
        await eventually(partial(self.is_gone, volume))

    async def event(self, about: str, reason: str) -> str:
        """The message of the first Event of this reason about an object."""

        async def found() -> str:
            events = (await self.api.list(EVENTS, namespace="default"))["items"]
            of_it = [one for one in events if one["involvedObject"]["name"] == about and one["reason"] == reason]
            return of_it[0]["message"] if of_it else ""

        return await eventually(found)

    async def directories(self, path: str = "") -> set[str]:
        """What lies in a directory of the file system, but for records."""
        async with self.controller.gateways.open(self.controller.fs) as webdav:
            return set(await webdav.list(Subpath(text=path))) - {".juicefs-csi", ".stats", ".config", ".accesslog"}

    async def records(self) -> set[str]:
        async with self.controller.gateways.open(self.controller.fs) as webdav:
            found = await webdav.list(Subpath(text=".juicefs-csi/volumes"))
            places = await webdav.list(Subpath(text=".juicefs-csi/places"))
        assert set(places) <= set(found)
        return set(found)


@asynccontextmanager
async def staged(server: ApiServer, directory: Path) -> AsyncIterator[Stage]:
    """A file system in this directory, and no controller yet."""
    place = {"metaurl": f"sqlite3://{directory}/meta.db", "storage": "file", "bucket": f"{directory}/objects"}
    secret = {"name": "demo", "access-key": MARK} | place
    connecting = Kubernetes.connect(kubeconfig=str(server.kubeconfig))
    async with connections_closed(), connecting as api, controlling(Filesystem.parse(secret)) as controller:
        yield Stage(api=api, controller=controller, secret=secret)


@asynccontextmanager
async def connections_closed() -> AsyncIterator[None]:
    """TLS takes its leave after the session is closed: the loop must not end before that."""
    files = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    before = len(files)
    yield
    await until(lambda: len(files) <= before)


async def eventually(condition: Callable[[], Awaitable[T | None]], *, within: float = 20.0) -> T:
    """What the condition answers as soon as that is something."""
    async with asyncio.timeout(within):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Requests to the API server by verb and kind, events and Leases left out, while within."""
    seen: Counter[str] = Counter()

    def count(verb: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Kubernetes, kind: Kind, *args: Any, **keywords: Any) -> Any:
            if kind.plural not in {"events", "leases"}:
                seen[f"{verb} {kind.plural}"] += 1
            return original(self, kind, *args, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for verb in VERBS:
            patch.setattr(Kubernetes, verb, count(verb, getattr(Kubernetes, verb)))
        yield seen
