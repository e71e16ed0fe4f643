"""A whole driver for tests, and the words that the tests tell it in."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from demo.driver import Driver, local_driver
from demo.orchestrator import Orchestrator, stubs
from shared.mounttable import MountEntry, MountTable

TABLE = MountTable()


@dataclass(kw_only=True)
class Local:
    """The running driver, and an orchestrator that calls it."""

    driver: Driver
    csi: Orchestrator

    def target(self, pod: str, volume: str) -> Path:
        return self.csi.target(pod, volume)

    def layers(self, path: Path | str) -> list[MountEntry]:
        return TABLE.at(str(path))

    def name(self, target: Path) -> str:
        """The mount name of the client that is bound at the target."""
        device = self.layers(target)[-1].device
        points = {entry.mount_point for entry in TABLE.read() if entry.device == device}
        return next(name for name in self.driver.layout.names() if str(self.driver.layout.mount_root / name) in points)

    def kill_client(self, name: str, number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Signal all processes of a client at once; their pids."""
        pids = self.driver.clients(name)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def moved(self, device: str, *targets: Path) -> bool:
        """True once no target has this device on top any more."""
        return all(self.layers(target)[-1].device != device for target in targets)

    async def kept(self, count: int) -> None:
        """Wait until the node service holds the FUSE descriptors of so many clients."""
        pid = self.driver.running["node"].pid
        await until(lambda: _descriptors(pid) >= count)

    async def replaced(self, name: str, killed: list[int]) -> None:
        """Wait until the client has other processes."""
        await until(lambda: len(set(self.driver.clients(name)) - set(killed)) >= 2)


@asynccontextmanager
async def local(*services: str, grace: float = 60.0) -> AsyncIterator[Local]:
    """A driver with these services (all of them if none is named), and nothing left of it afterwards."""
    async with local_driver(*services, grace=grace) as driver:
        controller, node = driver.channel("controller"), driver.channel("node")
        both = stubs(controller, node)
        try:
            yield Local(
                driver=driver,
                csi=Orchestrator(
                    controller=both[0],
                    node=both[1],
                    pods=driver.pods,
                    secrets=driver.secrets,
                    mount_options=driver.mount_options,
                ),
            )
        finally:
            controller.close()
            node.close()


def _descriptors(pid: int) -> int:
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += str(link.readlink()) == "/dev/fuse"
    return found


async def until(condition: Callable[[], Any], *, timeout: float = 30.0) -> None:
    """Wait for the condition; the test fails when it does not come.

    Raises:
        TimeoutError: after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come")
        await asyncio.sleep(0.01)


async def status(call: Any) -> Status:
    """The status a call ends with."""
    try:
        await call
    except GRPCError as error:
        return error.status
    return Status.OK
