"""What the story does to a machine besides CSI calls: to processes that the demo started, or to containers it found."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from demo.driver import Driver, processes
from demo.timeline import check, until
from shared.api.juicefs.v1 import RestartReply, RestartRequest
from shared.bus import Bus
from shared.layout import Layout

NODE_PROGRAM = "juicefs-csi-node"


class Machine(Protocol):
    """Where the driver runs."""

    @property
    def layout(self) -> Layout:
        """Where clients' mounts and files are."""

    async def restart_client(self, mount: str) -> None:
        """Ask mountpod for an orderly restart."""

    def clients(self, name: str = "") -> list[int]:
        """Pids of the client with this mount name, of all clients if none is given."""

    async def restart_node(self) -> None:
        """SIGKILL the node service, and wait until it serves again."""


async def ask_restart(bus: Bus, node: str, mount: str) -> None:
    """An orderly restart of a client, as mountpod offers it on the bus."""
    await bus.request(f"juicefs.rpc.mountpod.{node}.Restart", RestartRequest(mount=mount), RestartReply, timeout=30)


@dataclass(kw_only=True)
class LocalMachine:
    """The processes that the demo itself started."""

    driver: Driver
    bus: Bus

    @property
    def layout(self) -> Layout:
        return self.driver.layout

    async def restart_client(self, mount: str) -> None:
        await ask_restart(self.bus, self.driver.node, mount)

    def clients(self, name: str = "") -> list[int]:
        return self.driver.clients(name)

    async def restart_node(self) -> None:
        self.driver.running["node"].kill()
        await self.driver.stop("node")
        await self.driver.start("node")


@dataclass(kw_only=True)
class FoundMachine:
    """A driver that runs already, in containers whose processes are seen here; they restart what ends."""

    layout: Layout
    bus: Bus
    node: str
    node_socket: Path

    async def restart_client(self, mount: str) -> None:
        await ask_restart(self.bus, self.node, mount)

    def clients(self, name: str = "") -> list[int]:
        return processes(f"{self.layout.mount_root}/{name}", program="juicefs")

    async def restart_node(self) -> None:
        before = self._node_service()
        check(before, "the node service's process is not seen: does this container share the host's pid namespace?")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: self._node_service() - before, timeout=60, what="the node service is not back")
        await until(self._answers, timeout=60, what="the node service does not answer")

    def _node_service(self) -> set[int]:
        """Its processes: this driver's, not those of another one on the same host."""
        return set(processes(NODE_PROGRAM)) & set(processes(f"--mount-root={self.layout.mount_root}"))

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.node_socket))
            return True
        return False


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs while inside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
