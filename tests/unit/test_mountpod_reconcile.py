"""When mountpod closes a mount: by event, by a look, and not when somebody uses it."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from services.mountpod import reconcile
from services.mountpod.node import NodeService
from services.mountpod.reconcile import Reconcile
from shared.api.juicefs.v1 import Event, MountIdle, MountReport, ServiceStarted, TargetBound
from shared.bus import Bus
from shared.domain import Subpath
from shared.errors import NotReady
from shared.settings import ClientSettings


class FakeRuntime:
    def __init__(self) -> None:
        self.delay = 0.0
        self.ended: list[str] = []
        self.retries = 0

    async def ensure(self, settings: ClientSettings) -> None: ...

    async def restart(self, name: str) -> None: ...

    async def end(self, name: str) -> None:
        self.ended.append(name)

    def clients(self) -> Mapping[str, ClientSettings]:
        settings = ClientSettings(
            volume_id="v", credentials="0" * 64, subdir=Subpath(), options=(), delete_delay=self.delay
        )
        return {"v-abcdef": settings}

    def retry(self) -> None:
        self.retries += 1

    def tidy(self) -> None: ...


class FakeNode(NodeService):
    def __init__(self) -> None:
        super().__init__(bus=Bus(url="nats://127.0.0.1:1", service="mountpod"), node="n1")
        self.mounts: dict[str, MountReport] = {}
        self.is_away = False
        self.asked = asyncio.Event()

    async def close(self, name: str) -> bool:
        self.asked.set()
        if self.is_away:
            raise NotReady("away")
        mount = self.mounts.get(name)
        return not (mount and mount.targets)

    async def report(self) -> dict[str, MountReport]:
        if self.is_away:
            raise NotReady("away")
        return self.mounts


class Scene:
    def __init__(self) -> None:
        self.runtime, self.node = FakeRuntime(), FakeNode()
        self.reconcile = Reconcile(runtime=self.runtime, node=self.node)

    async def closed(self) -> bool:
        """Whether the node is asked to close, in a time that counts as soon here."""
        try:
            await asyncio.wait_for(self.node.asked.wait(), 0.2)
        except TimeoutError:
            return False
        await asyncio.sleep(0)
        return True


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(reconcile, "_GRACE", 0.02)
    found = Scene()
    found.node.mounts["v-abcdef"] = MountReport(mount="v-abcdef", targets=["/pods/one"])
    running = asyncio.create_task(found.reconcile.run())
    await asyncio.sleep(0)
    yield found
    running.cancel()
    await asyncio.wait({running})


async def test_an_idle_mount_is_closed_and_its_client_ended(scene: Scene) -> None:
    """Architecture 4, remove: MountIdle, then Close, then the client's end."""
    scene.node.mounts.clear()
    scene.reconcile.hear(Event(mount="v-abcdef", mount_idle=MountIdle()))
    assert await scene.closed()
    assert scene.runtime.ended == ["v-abcdef"]


async def test_a_mount_in_use_stays(scene: Scene) -> None:
    """The node says in use: its client is left alone, whatever an event said."""
    scene.reconcile.hear(Event(mount="v-abcdef", mount_idle=MountIdle()))
    assert await scene.closed()
    assert scene.runtime.ended == []


async def test_a_target_that_comes_back_within_the_delay_keeps_the_mount(scene: Scene) -> None:
    """behaviour.md 4.6: a new reference clears the delayed removal."""
    scene.runtime.delay = 0.05
    scene.reconcile.hear(Event(mount="v-abcdef", mount_idle=MountIdle()))
    scene.reconcile.hear(Event(mount="v-abcdef", target_bound=TargetBound(target="/pods/two")))
    assert not await scene.closed()


async def test_the_delay_of_the_volume_is_waited_for(scene: Scene) -> None:
    """`juicefs/mount-delete-delay`: not closed before it has passed."""
    scene.runtime.delay = 60.0
    scene.reconcile.hear(Event(mount="v-abcdef", mount_idle=MountIdle()))
    assert not await scene.closed()


async def test_an_idle_mount_that_no_event_told_of_is_found(scene: Scene) -> None:
    """Everything is level-triggered: the periodic look decides the same."""
    scene.node.mounts["v-abcdef"] = MountReport(mount="v-abcdef", device="0:50")
    await scene.reconcile.look()
    assert await scene.closed()


async def test_a_mount_that_a_publish_waits_for_is_not_closed(scene: Scene) -> None:
    """Between Ensure and bind nothing is bound yet: the node reports it as expected."""
    scene.node.mounts["v-abcdef"] = MountReport(mount="v-abcdef", expected=True)
    await scene.reconcile.look()
    assert not await scene.closed()


async def test_a_mount_whose_client_is_unknown_is_closed_too(scene: Scene) -> None:
    """What is left of an earlier life, with nobody's target, does not stay for ever."""
    scene.node.mounts["left-abcdef"] = MountReport(mount="left-abcdef")
    await scene.reconcile.look()
    assert await scene.closed()


async def test_a_node_that_is_away_stops_nothing(scene: Scene) -> None:
    """NATS or the node service away: nothing ends, the next look tries again."""
    scene.node.is_away = True
    assert await scene.reconcile.look() is False
    scene.reconcile.hear(Event(mount="v-abcdef", mount_idle=MountIdle()))
    assert await scene.closed()
    assert scene.runtime.ended == []


async def test_a_node_that_has_started_is_an_occasion(scene: Scene) -> None:
    """Clients that waited for the node service are tried again when it is there."""
    scene.reconcile.hear(Event(service_started=ServiceStarted(version="1")))
    assert scene.runtime.retries == 1
