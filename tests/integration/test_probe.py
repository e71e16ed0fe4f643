"""Questions to mounts, some of which are gone or never answer. No client: the kernel alone decides these."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.node.probe import DeadMount, Probes, Unmounted
from shared import mounter
from shared.errors import NotReady
from shared.mounttable import MountEntry, MountTable
from tests.unserved import mount, unserved

MIB = 1 << 20
TABLE = MountTable()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of its own mount, so that nothing stays mounted whatever happens."""
    with tempfile.TemporaryDirectory(prefix="probe-") as place:
        mounter._mount("tmpfs", place, 0, fs_type="tmpfs")
        try:
            yield Path(place)
        finally:
            for entry in sorted(TABLE.read(having=place), key=lambda entry: -len(entry.mount_point)):
                mounter.unmount(entry.mount_point)


@pytest.fixture
def probes(directory: Path) -> Probes:
    return Probes(directory)


def top(path: Path) -> MountEntry:
    entry = TABLE.top(str(path))
    assert entry is not None
    return entry


def targets(directory: Path, count: int) -> list[MountEntry]:
    """Binds of one file system of 1 MiB."""
    for number in range(count):
        (directory / str(number)).mkdir()
    mount("tmpfs", directory / "0", "size=1m")
    for number in range(1, count):
        mounter._mount(str(directory / "0"), str(directory / str(number)), 0x1000)  # MS_BIND
    return [top(directory / str(number)) for number in range(count)]


async def test_a_target_that_is_gone_harms_no_other(directory: Path, probes: Probes) -> None:
    """Promise 3: those who share its question get the size of the volume, never of the disk below."""
    entries = targets(directory, 5)
    for gone in entries[:3]:
        mounter.unmount(gone.mount_point)
    (directory / "1").rmdir()
    asked = await asyncio.gather(*map(probes.ask, entries), return_exceptions=True)
    assert [type(answer) for answer in asked[:3]] == [Unmounted] * 3
    assert [size.f_blocks * size.f_frsize for size in asked[3:] if isinstance(size, os.statvfs_result)] == [MIB, MIB]


async def test_what_covers_a_target_is_not_asked(directory: Path, probes: Probes) -> None:
    """The answer is of the mount that was asked about, whatever lies there now."""
    (entry,) = targets(directory, 1)
    mounter._mount("tmpfs", entry.mount_point, 0, fs_type="tmpfs")
    with pytest.raises(Unmounted):
        await probes.ask(entry)


async def test_a_file_that_is_a_target_is_asked(directory: Path, probes: Probes) -> None:
    """As the orchestrator binds one for a container that wants only that."""
    targets(directory, 1)
    for place in (directory / "0/file", directory / "file"):
        place.touch()
    mounter._mount(str(directory / "0/file"), str(directory / "file"), 0x1000)
    size = await probes.ask(top(directory / "file"))
    assert size.f_blocks * size.f_frsize == MIB


async def test_a_hung_client_costs_one_thread(directory: Path, probes: Probes) -> None:
    """Promise 9: however often it is asked about, and it is called hung within 2 s."""
    (directory / "hung").mkdir()
    with unserved(directory / "hung"):
        entry = top(directory / "hung")
        async with asyncio.timeout(2):
            asked = await asyncio.gather(*(probes.ask(entry) for _ in range(9)), return_exceptions=True)
        assert {type(answer) for answer in asked} == {NotReady}
        with pytest.raises(NotReady, match="does not answer"):
            await probes.ask(entry)
        threads = [thread for thread in threading.enumerate() if thread.name == f"probe {entry.device}"]
        assert len(threads) == 1
    await asyncio.to_thread(threads[0].join, 5)
    with pytest.raises(DeadMount):
        await probes.ask(entry)
