"""The floors: what each thing costs when nothing of the driver stands between the caller and the machine."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from grpclib.client import Channel

from demo.driver import program
from shared import mounter
from shared.api.csi.v1 import IdentityStub, ProbeRequest
from shared.mounttable import MountTable
from shared.threads import in_thread

_PATIENCE: Final = 20.0

_MS_BIND: Final = 0x1000  # mount(2)


@asynccontextmanager
async def bare_server(base: Path) -> AsyncIterator[IdentityStub]:
    """The server that does nothing, in a process of its own as a service is, while inside."""
    path = str(base / "bare.sock")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.bare", path, stdout=asyncio.subprocess.PIPE
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the bare server has no pipe")
        await asyncio.wait_for(process.stdout.readline(), _PATIENCE)
        channel = Channel(path=path)
        try:
            yield IdentityStub(channel)
        finally:
            channel.close()
    finally:
        process.terminate()
        await process.wait()


@dataclass(kw_only=True)
class BareBind:
    """Binds and unbinds by hand: one unary call, and the system calls."""

    server: IdentityStub
    base: Path
    source: str

    def target(self, number: int) -> str:
        return str(self.base / f"bare-{number}")

    async def bind(self, number: int) -> float:
        """Seconds of one unary call, mkdir(2) and mount(2)."""
        target = self.target(number)
        began = time.perf_counter()
        await self.server.probe(ProbeRequest())
        os.mkdir(target)  # noqa: PTH102 - the floor is the system call
        mounter._mount(self.source, target, _MS_BIND)
        return time.perf_counter() - began

    async def unbind(self, number: int) -> float:
        """Seconds of one unary call, umount2(2) and rmdir(2)."""
        target = self.target(number)
        began = time.perf_counter()
        await self.server.probe(ProbeRequest())
        mounter._umount(target, 0)
        os.rmdir(target)  # noqa: PTH106 - the same
        return time.perf_counter() - began


@dataclass(kw_only=True)
class BareClient:
    """Runs `juicefs` by hand. `table` is watched by whoever made it, as the services watch theirs."""

    base: Path
    table: MountTable = field(default_factory=MountTable)

    async def format(self, secrets: Mapping[str, str]) -> float:
        """Seconds of one `juicefs format`."""
        where = [f"--storage={secrets['storage']}", f"--bucket={secrets['bucket']}"]
        argv = [program("juicefs"), "format", secrets["metaurl"], secrets["name"], *where]
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
        if await asyncio.wait_for(process.wait(), _PATIENCE):
            raise RuntimeError("juicefs format failed by hand")
        return time.perf_counter() - began

    async def start(self, secrets: Mapping[str, str]) -> float:
        """Seconds from the start of a client until its root answers; afterwards the client is gone."""
        point = self.base / "by-hand"
        point.mkdir()
        argv = [program("juicefs"), "mount", secrets["metaurl"], str(point), "--metrics=127.0.0.1:0"]
        environment = os.environ | {"JFS_FOREGROUND": "1", "JFS_INSIDE_CONTAINER": "1"}
        with (self.base / "by-hand.log").open("ab") as log:
            began = time.perf_counter()
            process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220 - a millisecond, where the loop's own takes four
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._appears(point)
                await in_thread(lambda: os.statvfs(point), name="by hand")
            seconds = time.perf_counter() - began
            mounter.unmount(point)
            await in_thread(lambda: process.wait(_PATIENCE), name="end by hand")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        point.rmdir()
        return seconds

    async def _appears(self, point: Path) -> None:
        async with self.table.changes() as changed:
            while self.table.top(str(point)) is None:
                changed.clear()
                await changed.wait()
