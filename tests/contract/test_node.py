"""What mountpod may rely on when it asks the node service: the real one with real mounts, and the fake."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from services.mountpod.node import NodeService, is_used
from services.node.__main__ import answer_mountpod
from services.node.bindings import Bindings
from services.node.mounts import Mounts
from services.node.probe import Probes
from shared import mounter
from shared.domain import TargetPath
from shared.errors import InvalidRequest
from shared.layout import Layout
from shared.metrics import Metrics
from shared.mounttable import MountTable
from tests.fakes.bus import MemoryBus
from tests.fakes.node import FakeNode
from tests.unserved import unserved

NAME = "pvc-1-abcdef"


class Stage(Protocol):
    """What clients, and publishes, do on a machine."""

    def mount(self) -> None: ...

    def bind(self) -> str:
        """Its target."""

    def expected(self) -> AbstractContextManager[None]:
        """A publish waits for the client."""


class Fake:
    def __init__(self, bus: MemoryBus) -> None:
        self._node = FakeNode(bus)

    def mount(self) -> None:
        self._node.devices[NAME] = "0:50"

    def bind(self) -> str:
        self._node.targets[NAME] = ["/pods/one"]
        return "/pods/one"

    @contextmanager
    def expected(self) -> Iterator[None]:
        self._node.expected.add(NAME)
        yield
        self._node.expected.remove(NAME)


class Real:
    """Clients' mounts are of a file system that nobody serves: the node service never needs its answer here."""

    def __init__(self, bus: MemoryBus, root: Path, stack: ExitStack) -> None:
        self._root, self._stack, self._table = root, stack, MountTable()
        self._layout = Layout(mount_root=root / "m", run=root / "r")
        self._layout.clients.mkdir(parents=True)
        self._layout.mount_root.mkdir()
        self._bindings = Bindings(self._layout.targets, self._table.read())
        self.mounts = Mounts(
            layout=self._layout,
            table=self._table,
            bindings=self._bindings,
            probes=Probes(root),
            say=bus.say,
            metrics=Metrics(node="n1"),
        )
        answer_mountpod(bus, self.mounts, node="n1")

    def mount(self) -> None:
        point = self._layout.client(NAME).mount_point
        self._stack.callback(self._unmount, point)
        self._stack.enter_context(unserved(point))

    def _unmount(self, point: Path) -> None:
        if self._table.top(str(point)) is not None:
            mounter.unmount(point)

    def bind(self, *, is_noted: bool = True) -> str:
        entry = self._table.top(str(self._layout.client(NAME).mount_point))
        assert entry is not None
        target = TargetPath.parse(f"{self._root}/pods/one", root=str(self._root))
        with mounter.open_directory(target, create=True) as directory:
            mounter.bind(entry, directory, read_only=False)
        self._stack.callback(mounter.unmount, str(target))
        if is_noted:
            self._bindings.note(str(target), NAME)
        return str(target)

    def expected(self) -> AbstractContextManager[None]:
        return self.mounts.expect(NAME)

    def leave(self) -> None:
        if (point := self._layout.client(NAME).mount_point).exists():
            mounter.remove_mount_point(point)


@asynccontextmanager
async def real(bus: MemoryBus) -> AsyncIterator[Real]:
    if not Path("/dev/fuse").exists() or os.geteuid():
        pytest.skip("needs root and /dev/fuse")
    with tempfile.TemporaryDirectory(prefix="node") as root, ExitStack() as stack:
        found = Real(bus, Path(root).resolve(), stack)
        running = asyncio.create_task(found.mounts.run())
        await found.mounts.restored.wait()
        try:
            yield found
        finally:
            stack.close()
            found.leave()
            running.cancel()
            await asyncio.wait({running})


@pytest.fixture(params=["real", "fake"])
async def stage(request: pytest.FixtureRequest, bus: MemoryBus) -> AsyncIterator[Stage]:
    if request.param == "fake":
        yield Fake(bus)
        return
    async with real(bus) as found:
        yield found


@pytest.mark.usefixtures("stage")
async def test_what_was_prepared_is_reported_and_unused(node: NodeService) -> None:
    """Twice is as good as once."""
    assert await node.report() == {}
    for _ in range(2):
        await node.prepare(NAME, timeout=5)
        (mount,) = (await node.report()).values()
        assert (mount.mount, mount.device, is_used(mount)) == (NAME, "", False)


async def test_an_unused_mount_is_closed(stage: Stage, node: NodeService) -> None:
    """The kernel's device tells that it is mounted. What is closed is closed, however often it is asked."""
    await node.prepare(NAME, timeout=5)
    stage.mount()
    assert (await node.report())[NAME].device
    assert await node.close(NAME)
    assert await node.close(NAME)
    mount = (await node.report()).get(NAME)
    assert mount is None or (mount.device, is_used(mount)) == ("", False)


async def test_a_mount_with_a_target_stays(stage: Stage, node: NodeService) -> None:
    """Promise 1: whatever mountpod believes."""
    await node.prepare(NAME, timeout=5)
    stage.mount()
    target = stage.bind()
    assert not await node.close(NAME)
    mount = (await node.report())[NAME]
    assert (list(mount.targets), bool(mount.device), is_used(mount)) == ([target], True, True)


async def test_a_mount_that_a_publish_waits_for_stays(stage: Stage, node: NodeService) -> None:
    """Between Ensure and bind; once the publish has given up it is closed."""
    await node.prepare(NAME, timeout=5)
    stage.mount()
    with stage.expected():
        assert is_used((await node.report())[NAME])
        assert not await node.close(NAME)
    assert await node.close(NAME)


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("name", ["", "..", "a/b", "pvc-1", "pvc-1-abcdeF", "-abcdef"])
async def test_what_is_no_name_of_a_mount_is_refused(node: NodeService, name: str) -> None:
    """It becomes a path."""
    with pytest.raises(InvalidRequest):
        await node.prepare(name, timeout=5)
    with pytest.raises(InvalidRequest):
        await node.close(name)
    assert await node.report() == {}
