"""When mountpod closes a mount: by event, by a look, and not when somebody uses it. The clock is a fake one."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.mountpod.node import NodeService
from services.mountpod.reconcile import Reconcile
from shared.api.juicefs.v1 import Event, MountIdle, ServiceStarted, TargetBound
from shared.domain import Subpath
from shared.settings import ClientSettings
from tests.fakes.bus import MemoryBus
from tests.fakes.node import FakeNode
from tests.fakes.runtime import START, FakeRuntime

pytestmark = pytest.mark.looptime
HOUR = 3600.0


class Scene:
    """A client that serves one target, and `Reconcile` at work beside it."""

    def __init__(self) -> None:
        self.bus, self.runtime = MemoryBus(), FakeRuntime()
        self.node = FakeNode(self.bus)
        self.reconcile = Reconcile(runtime=self.runtime, node=NodeService(bus=self.bus, node="n1"))
        self.name = ""
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """In the test itself: the fake clock runs in no fixture."""
        self.running = asyncio.create_task(self.reconcile.run())
        await asyncio.sleep(0)

    async def serve(self, *, delete_delay: float = 0.0) -> None:
        settings = ClientSettings(
            volume_id="v", credentials="0" * 64, subdir=Subpath(), options=(), delete_delay=delete_delay
        )
        self.name = settings.mount_name
        self.node.devices[self.name], self.node.targets[self.name] = "0:50", ["/pods/one"]
        await self.runtime.ensure(settings)
        await asyncio.sleep(2 * START)
        await self.start()

    def idle(self) -> None:
        """The last target has gone, and the node says so."""
        self.node.targets.clear()
        self.reconcile.hear(Event(mount=self.name, mount_idle=MountIdle()))

    def is_closed(self) -> bool:
        return not self.node.devices[self.name]

    async def closed_after(self, *, within: float = 3 * HOUR) -> float:
        """Seconds from now until the mount is closed."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while not self.is_closed():
            assert clock() < began + within, "it never came"
            await asyncio.sleep(1)
        return clock() - began


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    found = Scene()
    yield found
    assert found.running
    found.running.cancel()
    await asyncio.wait({found.running})


async def test_an_idle_mount_is_closed_and_its_client_ended(scene: Scene) -> None:
    """Architecture 4, remove: MountIdle, then Close, then the client's end."""
    await scene.serve()
    scene.idle()
    assert await scene.closed_after() <= 1
    assert scene.runtime.ended == [scene.name]


async def test_a_mount_in_use_stays(scene: Scene) -> None:
    """The node says in use: its client is left alone, whatever an event said."""
    await scene.serve()
    scene.reconcile.hear(Event(mount=scene.name, mount_idle=MountIdle()))
    await asyncio.sleep(HOUR)
    assert (scene.is_closed(), scene.runtime.ended) == (False, [])


async def test_a_target_that_comes_back_within_the_delay_keeps_the_mount(scene: Scene) -> None:
    """behaviour.md 4.6: a new reference clears the delayed removal."""
    await scene.serve(delete_delay=HOUR)
    scene.idle()
    await asyncio.sleep(HOUR - 1)
    scene.node.targets[scene.name] = ["/pods/two"]
    scene.reconcile.hear(Event(mount=scene.name, target_bound=TargetBound(target="/pods/two")))
    await asyncio.sleep(2 * HOUR)
    assert not scene.is_closed()


async def test_the_delay_begins_anew_with_each_last_target(scene: Scene) -> None:
    """It is waited for from the moment when the mount became idle."""
    await scene.serve(delete_delay=HOUR)
    scene.idle()
    await asyncio.sleep(HOUR / 2)
    scene.reconcile.hear(Event(mount=scene.name, target_bound=TargetBound(target="/pods/two")))
    scene.idle()
    assert HOUR <= await scene.closed_after() <= HOUR + 1


async def test_the_delay_of_the_volume_is_waited_for(scene: Scene) -> None:
    """`juicefs/mount-delete-delay`: closed when it has passed, not before, however often it is looked at."""
    await scene.serve(delete_delay=HOUR)
    scene.idle()
    assert HOUR <= await scene.closed_after() <= HOUR + 1


async def test_an_idle_mount_that_no_event_told_of_is_found(scene: Scene) -> None:
    """Everything is level-triggered: the look each half minute decides the same, after a grace of 3 s."""
    await scene.serve()
    scene.node.targets.clear()
    assert 3 <= await scene.closed_after() <= 30 + 3 + 1
    assert scene.runtime.ended == [scene.name]


async def test_a_publish_within_the_grace_keeps_the_mount(scene: Scene) -> None:
    """Promise 14: the look found it unused, the publish came straight after."""
    await scene.serve()
    scene.node.targets.clear()
    await scene.reconcile.look()
    await asyncio.sleep(2)
    scene.node.targets[scene.name] = ["/pods/two"]
    scene.reconcile.hear(Event(mount=scene.name, target_bound=TargetBound(target="/pods/two")))
    await asyncio.sleep(HOUR)
    assert not scene.is_closed()


async def test_a_mount_that_a_publish_waits_for_is_not_closed(scene: Scene) -> None:
    """Between Ensure and bind nothing is bound yet: the node reports it as expected."""
    await scene.serve()
    scene.node.targets.clear()
    scene.node.expected.add(scene.name)
    await asyncio.sleep(HOUR)
    assert not scene.is_closed()


async def test_a_client_that_is_starting_is_left_alone(scene: Scene) -> None:
    """Its mount is not there yet, so nobody can use it."""
    await scene.serve()
    scene.node.targets.clear()
    scene.node.devices[scene.name] = ""
    await asyncio.sleep(HOUR)
    assert scene.runtime.ended == []


async def test_a_mount_whose_client_is_unknown_is_closed_too(scene: Scene) -> None:
    """What is left of an earlier life, with nobody's target, does not stay for ever."""
    scene.name = "left-abcdef"
    scene.node.devices[scene.name] = "0:51"
    await scene.start()
    assert await scene.closed_after() <= 30 + 3 + 1


async def test_a_node_that_is_away_stops_nothing(scene: Scene) -> None:
    """NATS or the node service away: nothing ends, and once it is back the next look is due within a second."""
    await scene.serve()
    scene.bus.is_away = True
    scene.idle()
    await asyncio.sleep(HOUR)
    assert (scene.is_closed(), scene.runtime.ended) == (False, [])
    scene.bus.is_away = False
    assert await scene.closed_after() <= 1 + 3 + 1
    assert scene.runtime.ended == [scene.name]


async def test_a_node_that_has_started_is_an_occasion(scene: Scene) -> None:
    """Clients that waited for the node service are tried again, and it is looked at what it has."""
    await scene.serve()
    scene.node.targets.clear()
    scene.reconcile.hear(Event(service_started=ServiceStarted(version="1")))
    assert scene.runtime.retries == 1
    assert await scene.closed_after() <= 3 + 1
