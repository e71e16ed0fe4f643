"""A machine for tests of mountpod: real clients over FUSE, and in memory what is on the other side of the bus."""

import asyncio
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.mountpod.launch import remove_files
from services.mountpod.node import NodeService
from services.mountpod.processes import Processes
from services.mountpod.supervisor import _holders
from shared import mounter
from shared.api.juicefs.v1 import (
    PrepareReply,
    PrepareRequest,
)
from shared.domain import Subpath
from shared.filesystem import credentials_digest
from shared.juicefs import Juicefs
from shared.layout import Layout
from shared.mounttable import MountTable
from shared.settings import ClientSettings
from tests.fakes.bus import MemoryBus
from tests.fakes.node import FakeNode

BINARY = Path(sys.executable).with_name("juicefs")
TABLE = MountTable()


class FakeKeeper:
    """Listens at the hand-over socket and keeps the descriptor that a client hands in (behaviour.md 4.9)."""

    def __init__(self, path: Path) -> None:
        self._setup, self.kept = b"FUSE", list[int]()
        self._null = os.open(os.devnull, os.O_RDONLY)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._clients = set[socket.socket]()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._clients.add(client)
        socket.send_fds(client, [self._setup], [self._null, *self.kept])
        self._loop.add_reader(client, self._hear, client)

    def _hear(self, client: socket.socket) -> None:
        self._drop(client)
        with client, suppress(ConnectionResetError):
            setup, descriptors, _, _ = socket.recv_fds(client, 4096, 4)
            if setup == b"CLOSE" and self.kept:
                with suppress(OSError):
                    os.write(self.kept[0], struct.pack("=IiQ", 16, 7, 0))  # FUSE_NOTIFY_RESEND
            elif setup:
                self._forget()
                self._setup, self.kept, descriptors = setup, descriptors[:1], descriptors[1:]
            for descriptor in descriptors:
                os.close(descriptor)

    def _drop(self, client: socket.socket) -> None:
        self._clients.remove(client)
        self._loop.remove_reader(client)

    def _forget(self) -> None:
        for descriptor in self.kept:
            os.close(descriptor)
        self._setup, self.kept = b"FUSE", []

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
            client.close()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._forget()
        os.close(self._null)


class MachineNode(FakeNode):
    """Makes directories and unmounts; still it reports the targets that a test says there are."""

    def __init__(self, bus: MemoryBus, layout: Layout) -> None:
        super().__init__(bus)
        self.layout = layout
        self.keepers: dict[str, FakeKeeper] = {}

    async def prepare(self, request: PrepareRequest) -> PrepareReply:
        client = self.layout.client(request.mount)
        client.directory.mkdir(parents=True, exist_ok=True)
        if request.mount not in self.keepers:
            self.keepers[request.mount] = FakeKeeper(client.comm_socket)
        if not self.keepers[request.mount].kept:
            unmount_all(str(client.mount_point))
            client.mount_point.mkdir(parents=True, exist_ok=True)
        return PrepareReply()

    def unmount(self, name: str) -> None:
        unmount_all(str(self.layout.client(name).mount_point))
        self.forget(name)

    def forget(self, name: str) -> None:
        """As when the node service ends: nobody keeps the client's descriptor any more."""
        if keeper := self.keepers.pop(name, None):
            keeper.close()
            self.layout.client(name).comm_socket.unlink()

    def names(self) -> set[str]:
        return {*self.layout.names(), *self.targets}


@dataclass(kw_only=True)
class Machine:
    """`root` holds everything, under a short path since a unix socket's has 108 bytes at most."""

    root: Path
    layout: Layout
    bus: MemoryBus
    node: MachineNode
    juicefs: Juicefs

    @asynccontextmanager
    async def runtime(self) -> AsyncIterator[Processes]:
        """The runtime, from a start of mountpod to its end; the clients stay."""
        table, node = MountTable(), NodeService(bus=self.bus, node="n1")
        runtime = Processes(layout=self.layout, juicefs=self.juicefs, table=table, bus=self.bus, node=node)
        tasks = [asyncio.create_task(table.run()), asyncio.create_task(runtime.run())]
        await asyncio.sleep(0)
        try:
            yield runtime
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def publish(self, volume: str = "pvc-1", **secrets: str) -> ClientSettings:
        """Leave credentials as a publish does; the settings to ask for a client with."""
        found = {
            "name": "demo",
            "metaurl": f"sqlite3://{self.root}/meta.db",
            "storage": "file",
            "bucket": f"{self.root}/objects/",
        } | secrets
        digest = credentials_digest(found)
        spool = self.layout.credentials(digest)
        spool.parent.mkdir(parents=True, exist_ok=True)
        spool.write_bytes(orjson.dumps(found))
        options = (("cache-dir", f"{self.root}/cache"), ("no-usage-report", ""))
        return ClientSettings(volume_id=volume, credentials=digest, subdir=Subpath(text=volume), options=options)

    def is_mounted(self, name: str) -> bool:
        return bool(self.device(name))

    def pids(self, name: str) -> list[int]:
        return _holders(self.layout.client(name).alive)

    def device(self, name: str) -> str:
        entry = TABLE.top(str(self.layout.client(name).mount_point))
        return entry.device if entry else ""

    async def close(self, name: str) -> None:
        """The node unmounts it."""
        await NodeService(bus=self.bus, node="n1").close(name)

    def left(self) -> list[str]:
        """What mountpod or a client left: the socket is the node's."""
        files = [str(path) for path in self.layout.clients.glob("*/*") if path.name != "comm.sock"]
        return files + [str(path) for path in self.layout.mount_root.glob("*") if TABLE.top(str(path))]

    async def clean(self) -> None:
        """End all, also what waits for an answer of its own mount."""
        pids = {pid for name in self.layout.names() for pid in self.pids(name)}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in list(self.node.keepers):
            self.node.forget(name)
        with mounter.fuse_control(TABLE, self.root / "control") as control:
            for path in self.layout.mount_root.glob("*"):
                while (entry := TABLE.top(str(path))) is not None:
                    with suppress(OSError):
                        (control / str(entry.minor) / "abort").write_text("1")
                    mounter.unmount(path)
            await until(lambda: not any(map(_is_there, pids)))
        for name in self.layout.names():
            remove_files(self.layout.client(name))


@asynccontextmanager
async def empty_machine() -> AsyncIterator[Machine]:
    """A machine on which nothing runs, before and after."""
    if not Path("/dev/fuse").exists() or os.geteuid():
        pytest.skip("needs root and /dev/fuse")
    juicefs = await Juicefs.probe(BINARY)
    with tempfile.TemporaryDirectory(prefix="mp", dir="/tmp") as root:
        layout = Layout(mount_root=Path(root, "m"), run=Path(root, "r"))
        bus = MemoryBus()
        found = Machine(root=Path(root), layout=layout, bus=bus, node=MachineNode(bus, layout), juicefs=juicefs)
        try:
            yield found
        finally:
            await found.clean()


async def until(condition: Callable[[], Any], *, timeout: float = 20.0) -> None:
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.02)


def unmount_all(path: str) -> None:
    while TABLE.top(path) is not None:
        mounter.unmount(path)


def _is_there(pid: int) -> bool:
    """False for a zombie too: who takes its exit code is not our business."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False
