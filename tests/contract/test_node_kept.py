"""What the node service keeps of a client that is a pod, until it hears of its end; with real mounts."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from services.mountpod.node import NodeService
from services.node import mounts as mounts_module
from services.node.leftovers import sweep_points
from shared import mounter
from shared.api.juicefs.v1 import Event, MountClosed, MountFailed
from shared.errors import NotFound, NotReady
from shared.layout import Client
from tests.contract.test_node import NAME, Real, real
from tests.fakes.bus import MemoryBus
from tests.unserved import unserved
from tests.waiting import until


@pytest.fixture
async def stage(bus: MemoryBus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Real]:
    """Nothing that was prepared is recent."""
    monkeypatch.setattr(mounts_module, "_PREPARED", -1.0)
    async with real(bus) as found:
        yield found
        found.mounts.hear(said(MountClosed()))


def said(what: MountClosed | MountFailed, *, seconds_later: float = 1.0) -> Event:
    event = Event(mount=NAME, time_ms=int((time.time() + seconds_later) * 1000))
    if isinstance(what, MountClosed):
        event.mount_closed = what
    else:
        event.mount_failed = what
    return event


def client(stage: Real) -> Client:
    return stage._layout.client(NAME)


async def test_what_is_not_kept_goes_with_a_look(stage: Real, node: NodeService) -> None:
    """A process' client that never came."""
    await node.prepare(NAME, timeout=5)
    await node.report()
    assert not client(stage).directory.exists()
    assert not client(stage).mount_point.exists()


async def test_what_is_kept_stays(stage: Real, node: NodeService) -> None:
    """A pod may take minutes until its image is there, and its /tmp must be."""
    await node.prepare(NAME, timeout=5, keep=True)
    for _ in range(2):
        assert list(await node.report()) == [NAME]
    assert client(stage).comm_socket.exists()


@pytest.mark.parametrize("what", [MountClosed(), MountFailed()])
async def test_its_end_takes_all_along(stage: Real, node: NodeService, what: MountClosed | MountFailed) -> None:
    """Also what the client left in its /tmp."""
    await node.prepare(NAME, timeout=5, keep=True)
    for name in ("alive", "formatted", "state12.json", "resume"):
        (client(stage).directory / name).touch()
    stage.mounts.hear(said(what))
    assert not client(stage).directory.exists()
    assert not client(stage).mount_point.exists()
    assert await node.report() == {}


@pytest.mark.parametrize("ahead", [0.0, 60.0, -60.0])
async def test_a_word_of_before_is_not_about_this_one(
    stage: Real, node: NodeService, *, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """It was said before the next client was prepared, and heard afterwards; mountpod's clock may be another one."""
    monkeypatch.setattr("services.mountpod.node.time", SimpleNamespace(time=lambda: time.time() + ahead))
    await node.prepare(NAME, timeout=5, keep=True)
    stage.mounts.hear(said(MountFailed(), seconds_later=ahead - 5))
    assert client(stage).comm_socket.exists()
    stage.mounts.hear(said(MountFailed(), seconds_later=ahead + 5))
    assert not client(stage).comm_socket.exists()


async def test_what_is_used_or_waited_for_stays(stage: Real, node: NodeService) -> None:
    """Whatever mountpod says."""
    await node.prepare(NAME, timeout=5, keep=True)
    with stage.expected():
        stage.mounts.hear(said(MountFailed()))
        assert client(stage).kept.exists()
    stage.mount()
    stage.mounts.hear(said(MountClosed()))
    assert client(stage).kept.exists()
    assert await node.close(NAME)


async def test_a_directory_in_it_is_not_touched(stage: Real, node: NodeService) -> None:
    """Promise 4: nothing is deleted that we don't know."""
    await node.prepare(NAME, timeout=5, keep=True)
    inside = client(stage).directory / "somebody" / "file"
    inside.parent.mkdir()
    inside.touch()
    stage.mounts.hear(said(MountClosed()))
    assert inside.exists()
    inside.unlink()
    inside.parent.rmdir()
    client(stage).directory.rmdir()


async def test_a_client_is_released_when_it_leaves(stage: Real, node: NodeService) -> None:
    """Not before it has said so, and only if it is there; one that does not answer keeps nobody waiting."""
    await node.prepare(NAME, timeout=5, keep=True)
    with pytest.raises(NotReady, match="not said that it leaves"):
        await node.release(NAME)
    client(stage).leaving.touch()
    with pytest.raises(NotFound):
        await node.release(NAME)
    stage.mount()
    async with asyncio.timeout(6):
        with pytest.raises(NotReady, match="does not tell its session"):
            await node.release(NAME)
    assert not client(stage).resume.exists()


async def test_a_client_of_the_driver_before_us_is_adopted(stage: Real, node: NodeService) -> None:
    """Whenever it is found: it has a mount where ours would be, and no directory."""
    point = client(stage).mount_point
    mounter.make_mount_point(point)
    with unserved(point):
        (mount,) = (await node.report()).values()
        assert (mount.mount, bool(mount.device)) == (NAME, True)
        assert client(stage).kept.exists()
        assert await node.close(NAME)


async def test_binds_of_the_driver_before_us_are_known_when_its_client_is_gone(stage: Real, node: NodeService) -> None:
    """It noted none: they are found while its mount is there."""
    point = client(stage).mount_point
    mounter.make_mount_point(point)
    with unserved(point):
        target = stage.bind(is_noted=False)
        await node.report()
        mounter.unmount(point)
        assert (await node.report())[NAME].targets == [target]


async def test_mount_points_that_a_reboot_left_are_removed(bus: MemoryBus) -> None:
    """Only empty ones that have a mount's name."""
    if os.geteuid():
        pytest.skip("needs root")
    async with real(bus) as found:
        layout, mounts = found._layout, found.mounts
        for name in (NAME, "pvc-2-abcdef", "other"):
            mounter.make_mount_point(layout.mount_root / name)
        await NodeService(bus=bus, node="n1").prepare(NAME, timeout=5, keep=True)
        sweep_points(layout, mounts._table)
        left = sorted(path.name for path in layout.mount_root.iterdir())
        mounts.hear(said(MountClosed()))
        await until(lambda: not layout.client(NAME).directory.exists())
        for path in layout.mount_root.iterdir():
            mounter.remove_mount_point(path)
    assert left == ["other", NAME]
