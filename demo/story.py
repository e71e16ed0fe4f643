"""A volume's whole life, step by step; every step checks what it says against the kernel and the file system."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from grpclib.exceptions import GRPCError

from demo.machine import Machine
from demo.orchestrator import Mode, Orchestrator, size, working
from demo.timeline import Timeline, check, until
from shared.domain import GIB
from shared.mounttable import MountEntry, MountTable

VOLUME = "pvc-8f7ad5a2-7c3a-4b5e-9d47-000000000001"
EXPAND_TIMEOUT = 40.0
"""Seconds: a client reads quotas anew with each heartbeat, every 12 s unless configured."""


class Story:
    """Tells it once, in order."""

    def __init__(self, *, line: Timeline, machine: Machine, orchestrator: Orchestrator) -> None:
        self._line = line
        self._machine = machine
        self._csi = orchestrator
        self._table = MountTable()
        self._one = orchestrator.target("one", VOLUME)
        self._two = orchestrator.target("two", VOLUME)

    async def tell(self) -> None:
        """All of it; whatever happens, nothing stays published."""
        try:
            await self._dynamic()
            await self._static()
        finally:
            await self._tidy()

    async def _tidy(self) -> None:
        """After a failure: what was published is taken back, as far as the driver lets us."""
        for target in (*self._targets, self._csi.target("static", "keep"), self._csi.target("static", "whole")):
            if self._table.at(str(target)):
                with suppress(GRPCError, OSError):
                    await self._csi.unpublish(VOLUME, target)

    async def _dynamic(self) -> None:
        """A provisioned volume, shared by two targets."""
        self._line.title("A provisioned volume")
        with self._line.step("create a volume of 1 GiB") as checked:
            volume = await self._csi.create(VOLUME, size=GIB)
            check(volume.capacity_bytes == GIB, "the controller promises another size")
            checked.append("the controller promises 1 GiB")
        context = dict(volume.volume_context)
        with self._line.step("publish it at two targets") as checked:
            await asyncio.gather(*(self._csi.publish(VOLUME, target, context=context) for target in self._targets))
            one, two = self._entry(self._one), self._entry(self._two)
            check(one.device == two.device, "the targets have different clients")
            checked.append(f"both are binds of one client, device {one.device}")
        await self._use()
        await self._grow()
        await self._disturb(context)
        await self._remove(context)

    @property
    def _targets(self) -> tuple[Path, Path]:
        return self._one, self._two

    def _entry(self, target: Path) -> MountEntry:
        layers = self._table.at(str(target))
        check(len(layers) == 1 and layers[0].is_juicefs, f"{target} has {len(layers)} mounts")
        return layers[0]

    async def _use(self) -> None:
        with self._line.step("write through one, read through the other") as checked:
            await asyncio.to_thread((self._one / "greeting").write_text, "hello")
            check(await asyncio.to_thread((self._two / "greeting").read_text) == "hello", "read something else")
            checked.append("the same words")
        with self._line.step("df at the target") as checked:
            check(await size(self._one) == GIB, f"df says {await size(self._one)} bytes")
            checked.append("1 GiB")

    async def _grow(self) -> None:
        with self._line.step("expand it to 2 GiB") as checked:
            before = self._entry(self._one)
            check(await self._csi.expand(VOLUME, size=2 * GIB) == 2 * GIB, "the controller promises another size")
            async with asyncio.timeout(EXPAND_TIMEOUT):
                while await size(self._one) != 2 * GIB:
                    await asyncio.sleep(0.2)
            check(self._entry(self._one) == before, "it was mounted anew")
            checked.append("df says 2 GiB; the same mount")

    async def _disturb(self, context: dict[str, str]) -> None:
        name = self._mount_name()
        with self._line.step("restart the client in an orderly way, under a writer with an open handle") as checked:
            async with working("write", self._one) as writer:
                before = self._machine.clients(name)
                await self._machine.restart_client(name)
                check(set(before) != set(self._machine.clients(name)), "no new client process")
                await writer.rounds(20)
            check(not writer.report["errors"], f"the writer saw {writer.report['errors'][:3]}")
            checked.append(
                f"no error in {writer.report['rounds']} rounds, longest pause {writer.report['longest_ms']} ms"
            )
        with self._line.step("SIGKILL the client, under a reader that opens anew") as checked:
            async with working("read", self._two) as reader:
                killed = self._machine.clients(name)
                for pid in killed:
                    with suppress(ProcessLookupError):  # a serving child dies with its supervisor
                        os.kill(pid, signal.SIGKILL)
                await until(lambda: set(self._machine.clients(name)) - set(killed), timeout=20, what="no new client")
                await reader.rounds(50)
            self._check_reader(reader.report, checked)
            self._entry(self._one)
        with self._line.step("restart the node service, under a reader") as checked:
            async with working("read", self._two) as reader:
                await self._machine.restart_node()
                await reader.rounds(50)
            check(not reader.report["errors"], f"the reader saw {reader.report['errors'][:3]}")
            await self._csi.publish(VOLUME, self._one, context=context)
            checked.append(f"no error in {reader.report['rounds']} rounds; it knows the target again")

    def _check_reader(self, report: dict[str, Any], checked: list[str]) -> None:
        # A handle that was open at the moment of the kill is lost with the client's state; nothing else may fail.
        lost = [error for error in report["errors"] if f"Errno {errno.EBADF}]" in error]
        check(len(lost) == len(report["errors"]) <= 1, f"the reader saw {report['errors'][:3]}")
        words = f"no dead mount in {report['rounds']} rounds, longest pause {report['longest_ms']} ms"
        checked.append(words + ("; a handle open at the kill was lost" if lost else ""))

    def _mount_name(self) -> str:
        device = self._entry(self._one).device
        names = [name for name in self._machine.layout.names() if self._device(name) == device]
        check(len(names) == 1, "not exactly one client")
        return names[0]

    def _device(self, name: str) -> str:
        entry = self._table.top(str(self._machine.layout.client(name).mount_point))
        return entry.device if entry else ""

    async def _remove(self, context: dict[str, str]) -> None:
        name = self._mount_name()
        with self._line.step("unpublish both targets") as checked:
            for target in self._targets:
                await self._csi.unpublish(VOLUME, target)
                check(not self._table.at(str(target)) and not target.exists(), f"{target} is still there")
            took = await until(lambda: not self._machine.clients(name), timeout=30, what="the client lives on")
            await until(lambda: name not in self._machine.layout.names(), timeout=60, what="files are left")
            checked.append(f"targets gone, the client ended {took:.1f} s later")
        with self._line.step("delete the volume, twice") as checked:
            await self._csi.delete(VOLUME)
            await self._csi.delete(VOLUME)
            async with self._published("whole", read_only=True) as root:
                check(not await asyncio.to_thread((root / VOLUME).exists), "its directory is still there")
            checked.append("its directory is gone from the file system")

    async def _static(self) -> None:
        """The whole file system read-only, and a directory of it; neither is ever deleted."""
        self._line.title("Static volumes")
        with self._line.step("publish the directory `keep` of the file system, and write") as checked:
            async with self._published("keep", context={"subPath": "keep"}) as keep:
                await asyncio.to_thread((keep / "treasure").write_text, "gold")
            checked.append("written")
        with self._line.step("publish the whole file system, read-only") as checked:
            async with self._published("whole", read_only=True) as root:
                check(await asyncio.to_thread((root / "keep/treasure").read_text) == "gold", "the directory is empty")
                await self._refuses_writes(root)
            checked.append("the directory is in it; a write is refused: read-only file system")
        with self._line.step("delete both volumes") as checked:
            await self._csi.delete("keep")
            await self._csi.delete("whole")
            async with self._published("keep", context={"subPath": "keep"}) as keep:
                check(await asyncio.to_thread((keep / "treasure").read_text) == "gold", "the data is gone")
            checked.append("a static volume's data survives")

    async def _refuses_writes(self, root: Path) -> None:
        try:
            await asyncio.to_thread((root / "forbidden").write_text, "no")
        except OSError as error:
            check(error.errno == errno.EROFS, f"the write failed with {error}")
        else:
            check(False, "a read-only volume was written to")

    @asynccontextmanager
    async def _published(
        self, volume: str, *, context: dict[str, str] | None = None, read_only: bool = False
    ) -> AsyncIterator[Path]:
        """A static volume published while inside."""
        target = self._csi.target("static", volume)
        mode = Mode.MULTI_NODE_READER_ONLY if read_only else Mode.MULTI_NODE_MULTI_WRITER
        await self._csi.publish(volume, target, context=context, mode=mode, read_only=read_only)
        try:
            yield target
        finally:
            await self._csi.unpublish(volume, target)
