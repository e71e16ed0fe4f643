"""The controller's way into file systems: `juicefs webdav` on the loopback address, one for each, only while needed.

It needs neither FUSE nor privileges, and a call takes milliseconds where a command of the client takes sixty. It runs
as this program's user and takes itself for root, so that it may delete what workloads of any user wrote
(docs/adr/0002-webdav-as-unprivileged.md).
"""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog

from services.controller.webdav import Webdav
from shared import as_root
from shared.domain import Secret
from shared.errors import CommandFailed, DriverError, NotReady
from shared.filesystem import Filesystem
from shared.juicefs import Command, Juicefs
from shared.runner import keep_tail, why

_START_SECONDS: Final = 20.0
_STEP_SECONDS: Final = 0.01
_STARTS: Final = 5
_END_SECONDS: Final = 5.0
_PATIENT: Final = aiohttp.ClientTimeout(total=None)
"""Every call of `Webdav` has its own deadline."""
_USER: Final = "csi"
_LISTENING: Final = b"WebDAV listening on"
_PORT_TAKEN: Final = b"address already in use"
_log = structlog.get_logger()


class _Slot:
    """A gateway between its start and its end. `users` are calls that work with it."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[Webdav] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(lambda ready: ready.exception())  # seen, also when nobody waits any more
        self.leaving = asyncio.Event()
        self.users = 0
        self.timer: asyncio.TimerHandle | None = None


class Gateways:
    """The running gateways, by digest of credentials. Each ends when nobody used it for `idle` seconds."""

    def __init__(self, juicefs: Juicefs, *, idle: float = 60.0) -> None:
        self._juicefs = juicefs
        self._idle = idle
        self._slots: dict[str, _Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End all gateways; calls that work with one fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def open(self, fs: Filesystem) -> AsyncIterator[Webdav]:
        """The file system's gateway, started if none runs; callers at the same time share one start.

        Raises:
            CommandFailed, NotReady: the client's own words.
        """
        slot = self._slots.get(fs.credentials)
        if slot is None or slot.leaving.is_set():
            slot = self._slots[fs.credentials] = _Slot()
            task = asyncio.create_task(self._serve(fs, slot), name=f"gateway {fs.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        slot.users += 1
        if slot.timer:
            slot.timer.cancel()
        try:
            yield await asyncio.shield(slot.ready)
        finally:
            slot.users -= 1
            if not slot.users:
                slot.timer = asyncio.get_running_loop().call_later(self._idle, slot.leaving.set)

    async def _serve(self, fs: Filesystem, slot: _Slot) -> None:
        """The whole life of one gateway; what goes wrong is told to those who wait for it."""
        failure: DriverError = NotReady("the gateway to the file system was stopped: try again")
        try:
            async with AsyncExitStack() as stack:
                slot.ready.set_result(await self._start(fs, slot, stack))
                _log.info("gateway started", filesystem=fs.name)
                await slot.leaving.wait()
            _log.info("gateway stopped", filesystem=fs.name)
        except DriverError as error:
            failure = error
        except OSError as error:
            failure = NotReady(f"the gateway to the file system can't be started: {error.strerror}")
        finally:
            slot.leaving.set()
            if not slot.ready.done():
                slot.ready.set_exception(failure)
            if self._slots.get(fs.credentials) is slot:
                del self._slots[fs.credentials]

    async def _start(self, fs: Filesystem, slot: _Slot, stack: AsyncExitStack) -> Webdav:
        for _ in range(_STARTS):
            port, password = _free_port(), Secret(secrets.token_urlsafe(24))
            command = self._juicefs.webdav(fs, address=f"127.0.0.1:{port}", user=_USER, password=password)
            headers = {"Authorization": aiohttp.encode_basic_auth(_USER, password.reveal())}
            async with AsyncExitStack() as attempt:
                gateway = await attempt.enter_async_context(_running(command))
                session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, timeout=_PATIENT)
                webdav = Webdav(await attempt.enter_async_context(session))
                if await gateway.answers(webdav):
                    gateway.printed.add_done_callback(lambda _: slot.leaving.set())
                    stack.push_async_exit(attempt.pop_all())
                    return webdav
        raise NotReady("the gateway to the file system found no free port on the loopback address: try again")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gateway:
    """A process and what it prints; `printed` is done when it has ended."""

    command: Command
    tail: bytearray
    printed: asyncio.Task[None]

    async def answers(self, webdav: Webdav) -> bool:
        """Wait until it answers; False if another program was faster to take its port.

        Raises:
            CommandFailed: it has ended. NotReady: it does not answer in time.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                # Its own word comes first: the one who answers at its port might be somebody else.
                while not (_LISTENING in self.tail and not self.printed.done() and await webdav.is_up()):
                    if self.printed.done() and _PORT_TAKEN in self.tail:
                        return False
                    if self.printed.done():
                        found = why(self.command, self.tail)
                        raise CommandFailed(f"{found.reason}: {found.line}", reason=found.reason)
                    await asyncio.sleep(_STEP_SECONDS)
        except TimeoutError:
            found = why(self.command, self.tail)
            raise NotReady(f"{found.reason}: no answer within {_START_SECONDS:g} s: {found.line}") from None
        return True


@asynccontextmanager
async def _running(command: Command) -> AsyncIterator[_Gateway]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", as_root.__file__, str(os.getpid()), *command.argv),
        env=command.whole_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    tail = bytearray()
    printed = asyncio.create_task(keep_tail(process.stdout or asyncio.StreamReader(), tail))
    try:
        yield _Gateway(command=command, tail=tail, printed=printed)
    finally:
        for end in (process.terminate, process.kill):
            with suppress(ProcessLookupError, TimeoutError):
                end()
                async with asyncio.timeout(_END_SECONDS):
                    await process.wait()
                    await printed


def _free_port() -> int:
    """A port that is free now; whoever takes it before the gateway does makes for another try."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
