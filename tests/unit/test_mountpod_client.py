"""When a client that does not come back is tried again. The clock is a fake one; no process is started here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.mountpod.client import Client
from services.mountpod.failures import back_off
from services.mountpod.node import NodeService
from shared.diagnosis import META_UNREACHABLE
from shared.domain import Subpath
from shared.errors import CommandFailed
from shared.layout import Client as Paths
from shared.mounttable import MountTable
from shared.settings import ClientSettings
from tests.fakes.bus import MemoryBus
from tests.fakes.node import FakeNode

pytestmark = pytest.mark.looptime
NAME = "v-abcdef"


class Scene:
    """A client that had its mount and lost it, and can't be started any more."""

    def __init__(self, directory: Path) -> None:
        self.bus, self.starts = MemoryBus(), list[float]()
        self.node = FakeNode(self.bus)
        self.node.targets[NAME] = ["/pods/one"]
        self.client = Client(
            settings=ClientSettings(volume_id="v", credentials="0" * 64, subdir=Subpath(), options=()),
            paths=Paths(name=NAME, mount_point=directory, directory=directory),
            launcher=SimpleNamespace(adopt=lambda *_, **__: None, launch=self._launch),  # type: ignore[arg-type]
            table=MountTable(),
            node=NodeService(bus=self.bus, node="n1"),
            say=self.bus.say,
        )
        self.client.adopt(was_mounted=True)

    async def _launch(self, *_: Any, **__: Any) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        raise CommandFailed("META_UNREACHABLE: refused", reason=META_UNREACHABLE)

    def pauses(self) -> list[int]:
        return [round(later - sooner) for sooner, later in zip(self.starts, self.starts[1:], strict=False)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@asynccontextmanager
async def living(scene: Scene) -> AsyncIterator[asyncio.Task[None]]:
    running = asyncio.create_task(scene.client.run())
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait({running})


def test_the_back_off_grows_to_half_a_minute() -> None:
    """Seconds, by failures in a row."""
    assert [back_off(failures) for failures in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]


async def test_a_client_in_use_is_tried_for_ever(scene: Scene) -> None:
    """At once, and then ever more rarely; each failure is told with its class."""
    async with living(scene):
        await asyncio.sleep(300)
    assert scene.pauses()[:9] == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert {said.mount_failed.reason for said in scene.bus.said if said.mount_failed} == {META_UNREACHABLE}


async def test_a_client_whose_bus_is_away_is_tried_too(scene: Scene) -> None:
    """Promise 8: whether it is in use can't be asked, so it is."""
    scene.bus.is_away = True
    async with living(scene):
        await asyncio.sleep(300)
    assert len(scene.starts) > 8


async def test_the_node_service_that_starts_is_an_occasion(scene: Scene) -> None:
    """What was lacking may be there: the next try is now, not when it is due."""
    async with living(scene):
        await asyncio.sleep(100)
        before = len(scene.starts)
        scene.client.retry()
        await asyncio.sleep(0.1)
        assert len(scene.starts) == before + 1


async def test_a_client_that_nobody_uses_any_more_is_given_up(scene: Scene) -> None:
    """The next publish starts another."""
    async with living(scene) as running:
        await asyncio.sleep(100)
        scene.node.targets.clear()
        await asyncio.wait_for(running, 31)
    assert scene.bus.kinds().count("MountFailed") == len(scene.starts)
