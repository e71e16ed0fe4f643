"""Objects that follow the API server's, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex

import msgspec
import pytest

from shared.informer import Informer
from shared.kubernetes import CONFIG_MAPS, PERSISTENT_VOLUMES, PODS, Kubernetes
from shared.objects import ConfigMap, Metadata, PersistentVolume, Pod
from tests.api_server import ApiServer
from tests.waiting import until

Change = tuple[str, str, str]


class Stage:
    """ConfigMaps with a label of their own, an Informer of them, and what it told."""

    def __init__(self, api: Kubernetes) -> None:
        self.api = api
        self.mark = f"t-{token_hex(4)}"
        self.told: list[Change] = []
        self.informer = Informer(api, CONFIG_MAPS, ConfigMap, labels=f"a={self.mark}", on_change=self.on_change)

    def on_change(self, old: ConfigMap | None, new: ConfigMap | None) -> None:
        about = new or old
        assert about is not None
        texts = [one.data.get("k", "") if one else "-" for one in (old, new)]
        self.told.append((about.metadata.name.removeprefix(f"{self.mark}-"), texts[0], texts[1]))

    def name(self, short: str) -> str:
        return f"{self.mark}-{short}"

    async def make(self, short: str, *, text: str = "1", api: Kubernetes | None = None) -> None:
        body = {"metadata": {"name": self.name(short), "labels": {"a": self.mark}}, "data": {"k": text}}
        await (api or self.api).create(CONFIG_MAPS, body, namespace="default")

    async def change(self, short: str, text: str, *, api: Kubernetes | None = None) -> None:
        await (api or self.api).patch(CONFIG_MAPS, self.name(short), {"data": {"k": text}}, namespace="default")

    async def remove(self, short: str, *, api: Kubernetes | None = None) -> None:
        await (api or self.api).delete(CONFIG_MAPS, self.name(short), namespace="default")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.informer.run())
        try:
            async with asyncio.timeout(10):
                await self.informer.synced.wait()
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def until_told(self, *changes: Change, within: float = 10) -> None:
        """Exactly these, in whatever order."""
        await until(lambda: len(self.told) >= len(changes), within=within)
        assert sorted(self.told) == sorted(changes)


@pytest.fixture
def stage(api: Kubernetes) -> Stage:
    return Stage(api)


async def test_each_change_is_told_once(stage: Stage) -> None:
    """What is there at the beginning, and what happens after it."""
    await stage.make("old")
    async with stage.running():
        await stage.make("new")
        await stage.change("new", "2")
        await stage.remove("new")
        await stage.until_told(("old", "-", "1"), ("new", "-", "1"), ("new", "1", "2"), ("new", "2", "-"))

    assert list(stage.informer.objects) == [f"default/{stage.name('old')}"]


async def test_leaving_the_selector_is_leaving(stage: Stage) -> None:
    """An object that no longer has the label is as good as deleted."""
    await stage.make("a")
    async with stage.running():
        await stage.api.patch(CONFIG_MAPS, stage.name("a"), {"metadata": {"labels": None}}, namespace="default")
        await stage.until_told(("a", "-", "1"), ("a", "1", "-"))


async def test_pages_are_one_list(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.kubernetes._PAGE", 2)
    for short in "abcde":
        await stage.make(short)
    async with stage.running():
        assert len(stage.informer.objects) == 5


async def test_an_error_in_a_change_ends_nothing(stage: Stage) -> None:
    """One object that can't be dealt with is logged, and the next is told."""
    told: list[str] = []

    def fail(_old: ConfigMap | None, new: ConfigMap | None) -> None:
        assert new is not None
        told.append(new.metadata.name)
        raise KeyError

    stage.informer._on_change = fail
    async with stage.running():
        await stage.make("a")
        await stage.make("b")
        await until(lambda: told == [stage.name("a"), stage.name("b")])


async def test_an_object_of_another_shape_is_left_out(api: Kubernetes, stage: Stage) -> None:
    """Were a field ever of another type than we think, only that object would be missing."""

    class Odd(ConfigMap, frozen=True):
        data: dict[str, int] = msgspec.field(default_factory=dict)  # type: ignore[assignment]

    await stage.make("a")
    informer = Informer(api, CONFIG_MAPS, Odd, labels=f"a={stage.mark}")
    stage.informer = informer  # type: ignore[assignment]
    async with stage.running():
        await stage.make("b")
        await api.patch(CONFIG_MAPS, stage.name("b"), {"data": None}, namespace="default")
        await until(lambda: list(informer.objects) == [f"default/{stage.name('b')}"])


async def test_killed_and_back(server: ApiServer, stage: Stage) -> None:
    """The API server dies and returns: nothing is told again, and what happens then is told."""
    await stage.make("a")
    async with stage.running():
        server.kill()
        await until(lambda: not stage.informer.is_current)
        server.start()
        await until(lambda: stage.informer.is_current, within=20)
        await stage.change("a", "2")
        await stage.until_told(("a", "-", "1"), ("a", "1", "2"))


async def test_what_happened_meanwhile(server: ApiServer, stage: Stage) -> None:
    """History is gone when the API server is back: listed again, each difference is told once."""
    for short in ("stays", "changes", "goes", "anew"):
        await stage.make(short)
    before = {("stays", "-", "1"), ("changes", "-", "1"), ("goes", "-", "1"), ("anew", "-", "1")}
    async with stage.running():
        with server.elsewhere() as kubeconfig:
            async with Kubernetes.connect(kubeconfig=str(kubeconfig)) as other:
                await stage.change("changes", "2", api=other)
                await stage.remove("goes", api=other)
                await stage.remove("anew", api=other)
                await stage.make("anew", text="2", api=other)
                await stage.make("comes", api=other)
            server.compact()
            assert not stage.informer.is_current
        after = {("changes", "1", "2"), ("goes", "1", "-"), ("anew", "1", "-"), ("anew", "-", "2"), ("comes", "-", "1")}
        await stage.until_told(*before, *after, within=20)
        assert stage.informer.is_current


async def test_a_watch_that_ends_is_begun_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it was, without a list."""
    monkeypatch.setattr("shared.kubernetes._LIFE", 1)
    async with stage.running():
        monkeypatch.setattr(stage.informer, "_list", None)  # would fail
        await stage.make("a")
        await until(lambda: len(stage.told) == 1)
        await asyncio.wait_for(stage.informer.synced.wait(), 1)
        await stage.change("a", "2")
        await stage.until_told(("a", "-", "1"), ("a", "1", "2"))
        assert stage.informer.is_current


async def test_started_while_the_api_server_is_away(server: ApiServer, stage: Stage) -> None:
    """A service starts without it, and gets everything when it is there."""
    await stage.make("a")
    server.kill()
    task = asyncio.create_task(stage.informer.run())
    await until(lambda: stage.informer._is_away)
    server.start()
    await stage.until_told(("a", "-", "1"), within=20)
    task.cancel()
    await asyncio.wait({task})
    assert not stage.informer.is_current


async def test_only_declared_fields_are_kept(api: Kubernetes) -> None:
    """Of a volume what the driver looks at, as typed values; of the rest nothing."""
    name = f"t-{token_hex(4)}"
    source = {"driver": "d", "volumeHandle": "h", "volumeAttributes": {"x": "y"}}
    spec = {"csi": source, "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"]}
    await api.create(PERSISTENT_VOLUMES, {"metadata": {"name": name, "annotations": {"a": "b"}}, "spec": spec})
    informer = Informer(api, PERSISTENT_VOLUMES, PersistentVolume, fields=f"metadata.name={name}")
    task = asyncio.create_task(informer.run())
    await until(lambda: name in informer.objects)
    task.cancel()
    await asyncio.wait({task})

    volume = informer.objects[name]
    assert volume.spec.csi is not None
    assert (volume.spec.csi.volume_handle, volume.spec.csi.volume_attributes) == ("h", {"x": "y"})
    assert volume.metadata.annotations == {"a": "b"}
    assert isinstance(volume.metadata, Metadata)
    assert not hasattr(volume.metadata, "managed_fields")


async def test_a_pods_state_is_typed(api: Kubernetes) -> None:
    name = f"t-{token_hex(4)}"
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "n1"}
    await api.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace="default")
    state = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    container = {"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 2, "state": state}
    status = {"status": {"containerStatuses": [container]}}
    await api.patch(PODS, name, status, namespace="default", subresource="status")
    informer = Informer(api, PODS, Pod, namespace="default", fields=f"metadata.name={name}")
    task = asyncio.create_task(informer.run())
    await until(informer.synced.is_set)
    task.cancel()
    await asyncio.wait({task})

    (found,) = informer.objects.values()
    (container_status,) = found.status.container_statuses
    assert found.spec.node_name == "n1"
    assert container_status.state.waiting is not None
    assert container_status.state.waiting.reason == "ErrImagePull"
    assert container_status.restart_count == 2
