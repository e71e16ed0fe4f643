"""The hand-over sockets of a machine's clients: opened once, closed on purpose, and asked for again when they lack."""

import asyncio
import fcntl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.node.keeper import Keeper
from services.node.keepers import Keepers
from shared.api.juicefs.v1 import DescriptorKept, DescriptorTaken
from shared.layout import Layout
from shared.metrics import Metrics

NAME = "pvc-1-abcdef"


@pytest.fixture
def layout() -> Iterator[Layout]:
    """Under a short path: a unix socket's has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="keep", dir="/tmp") as root:
        found = Layout(mount_root=Path(root, "m"), run=Path(root, "r"))
        for name in (NAME, "pvc-2-abcdef"):
            found.client(name).directory.mkdir(parents=True)
        yield found


class Scene:
    def __init__(self, layout: Layout, tasks: asyncio.TaskGroup) -> None:
        self.layout, self.tasks = layout, tasks
        self.said: list[tuple[str, str]] = []
        self.metrics = Metrics(node="n1")
        self.keepers = Keepers(layout=layout, say=self.say, metrics=self.metrics)

    def say(self, what: Any, *, volume_id: str = "", mount: str = "") -> None:
        self.said.append((type(what).__name__, mount))

    def open(self, name: str = NAME) -> Keeper:
        return self.keepers.open(name, self.tasks)


@pytest.fixture
async def scene(layout: Layout) -> AsyncIterator[Scene]:
    async with asyncio.TaskGroup() as tasks:
        found = Scene(layout, tasks)
        yield found
        for name in layout.names():
            found.keepers.close(name)


async def test_a_socket_is_opened_once(scene: Scene, layout: Layout) -> None:
    """A client that was prepared twice finds the same."""
    keeper = scene.open()
    inode = layout.client(NAME).comm_socket.stat().st_ino
    assert scene.open() is keeper is scene.keepers.get(NAME)
    assert layout.client(NAME).comm_socket.stat().st_ino == inode
    assert layout.client(NAME).comm_socket.stat().st_mode & 0o777 == 0o600


async def test_what_is_closed_leaves_nothing(scene: Scene, layout: Layout) -> None:
    """Also when it never came to serve; twice is fine."""
    before = _descriptors()
    scene.open()
    for _ in range(2):
        scene.keepers.close(NAME)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not layout.client(NAME).comm_socket.exists()
    assert scene.keepers.get(NAME) is None
    assert _descriptors() == before


async def test_an_orphan_is_held_and_has_no_client(
    scene: Scene, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls wait until the next client has handed the descriptor in: that one is there does not help them."""
    keeper = scene.open()
    assert scene.keepers.orphans() == {}
    monkeypatch.setattr(Keeper, "holds", property(lambda _: True))
    assert scene.keepers.orphans() == {NAME: False}
    with layout.client(NAME).alive.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert scene.keepers.orphans() == {NAME: True}
        keeper._say(DescriptorKept())
        assert scene.keepers.orphans() == {}


async def test_a_client_whose_descriptor_we_lack_is_asked_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute, and then once in half a minute; not one that is not there."""
    clock = [1000.0]
    monkeypatch.setattr("services.node.keepers.time", SimpleNamespace(monotonic=lambda: clock[0]))
    scene.open()
    scene.open("pvc-2-abcdef")
    looks = []
    for _ in range(7):
        looks.append(list(scene.keepers.overdue([NAME, "unknown-abcdef"])))
        clock[0] += 10
    assert looks == [[], [], [], [], [NAME], [], []]
    assert list(scene.keepers.overdue([])) == []


async def test_a_descriptor_that_was_taken_is_a_client_that_was_healed(scene: Scene) -> None:
    """It is counted, and said with the mount that it is of."""
    scene.open()._say(DescriptorTaken())
    assert scene.said == [("DescriptorTaken", NAME)]
    assert scene.metrics.heals.labels("hand-over")._value.get() == 1


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
