"""The life of one client: started, mounted, watched, started again when it dies, ended when its mount is closed.

What decides is read from the kernel each time: the lock tells whether it lives, the mount table whether it is mounted.
Memory holds only what a caller wishes, so after a restart of ours, at any line, the next look goes on from there.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import betterproto2
import structlog

from services.mountpod.client_log import ClientLog
from services.mountpod.failures import back_off
from services.mountpod.launch import Launcher, remove_files, write_state
from services.mountpod.node import NodeService, is_used
from services.mountpod.supervisor import Supervisor, end_all
from shared import log
from shared.alive import is_alive
from shared.api.juicefs.v1 import ClientExited, ClientReady, ClientStarting, MountFailed
from shared.diagnosis import META_NOT_FORMATTED, UNKNOWN
from shared.errors import Busy, CommandFailed, DriverError, NotReady
from shared.layout import Client as ClientPaths
from shared.mounttable import MountTable
from shared.settings import ClientSettings

_START_TIMEOUT: Final = 25.0
_COMPLAINT_TIMEOUT: Final = 5.0
_RESTART_TIMEOUT: Final = 15.0
_REPORT_PATIENCE: Final = 3.0
_SETTLED: Final = 10.5  # a supervisor gives up when its third child ends within 10 s of its own start
_END_TIMEOUT: Final = 10.0
_END_GRACE: Final = 5.0
_FAILED_GRACE: Final = 2.0
_STABLE: Final = 1.0
_LOOK: Final = 0.25
_HOPELESS: Final = ("META_", "BUCKET_")

_log = structlog.get_logger()


class Client:
    """One client, by its settings. `say` tells an event of it."""

    def __init__(
        self,
        *,
        settings: ClientSettings,
        paths: ClientPaths,
        launcher: Launcher,
        table: MountTable,
        node: NodeService,
        say: Callable[[betterproto2.Message], None],
    ) -> None:
        self.settings = settings
        self.paths = paths
        self._client_log = ClientLog(paths.log)
        self._launcher = launcher
        self._table = table
        self._node = node
        self.say = say
        self._supervisor: Supervisor | None = None
        self._was_mounted = False
        self._is_ready = False
        self._is_asked = True
        self._is_restarting = False
        self._ended = asyncio.Event()
        self._due = asyncio.Event()
        self._attempt = 0

    # ---- what others wish

    def adopt(self, *, was_mounted: bool) -> None:
        """Go on with what was there before a start of ours: a client that lives, or a mount that lost its own."""
        self._is_asked = False
        self._was_mounted = was_mounted or self._is_mounted
        self._supervisor = self._launcher.adopt(self.paths, self.settings, log=self._client_log)

    def ask(self) -> None:
        """A publish wants this client: if it is being ended, it starts again afterwards."""
        if not self._is_mounted:
            self._is_asked = True
            self._ended.clear()

    async def end(self) -> None:
        """The mount was closed: the client ends by itself, or is made to. It comes back if it was asked for since."""
        if self._is_mounted:  # by the next one already
            return
        self._was_mounted = False
        if not self._is_asked:
            self._ended.set()
            self._due.set()
        if self._supervisor is not None and self._is_ready:
            await self._supervisor.end(patience=_END_TIMEOUT, grace=_END_GRACE)

    async def restart(self) -> None:
        """Have the supervisor replace the serving child: it saves what is open, and the new one loads it.

        Raises:
            Busy: it is starting. NotReady: the new child did not come within 15 s.
        """
        supervisor = self._supervisor
        old = supervisor.serving() if supervisor is not None and self._is_ready else None
        if supervisor is None or old is None or self._is_restarting:
            raise Busy(f"{self.paths.name} is starting")
        self._is_restarting = True
        try:
            await asyncio.sleep(max(0.0, _SETTLED - supervisor.age()))
            if old != supervisor.serving():
                raise Busy(f"{self.paths.name} has just got another process")
            self._starting()
            began = time.monotonic()
            os.kill(old, signal.SIGHUP)
            async with asyncio.timeout(_RESTART_TIMEOUT):
                await self._until(lambda: supervisor.serving() not in {None, old})
        except (TimeoutError, ProcessLookupError):
            raise NotReady(
                f"{self.paths.name} has no new process after {_RESTART_TIMEOUT:.0f} s: see its log"
            ) from None
        finally:
            self._is_restarting = False
        self.say(ClientReady(after_ms=_since(began)))

    def retry(self) -> None:
        """Don't wait for the next try: what it lacked may be there now."""
        self._due.set()

    def tidy(self) -> None:
        self._client_log.trim()

    # ---- its life

    async def run(self) -> None:
        """From its first start to its end. When cancelled it goes on without us.

        Raises:
            DriverError: its mount never appeared. Nothing of it is left.
        """
        failures = 0
        try:
            if self._supervisor is None:
                await self._end_processes(grace=0.0)
            while self._supervisor is not None or await self._is_wanted():
                failures = 0 if await self._live() > _STABLE else failures + 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(back_off(max(failures - 1, 0))):
                        await self._due.wait()
                self._due.clear()
            self._remove_files()
        finally:
            if self._supervisor is not None:
                self._supervisor.release()  # the service ends, the client does not

    async def _live(self) -> float:
        """One life, from a start or an adoption to the end of all its processes. Its seconds; 0 if it never served."""
        began = time.monotonic()
        try:
            await self._serve(await self._start())
        except DriverError as error:
            supervisor = self._supervisor
            if isinstance(error, CommandFailed) and error.reason == META_NOT_FORMATTED:
                self._launcher.forget_format(self.settings.credentials)
            await self._end_processes(grace=_FAILED_GRACE)
            if supervisor is not None and supervisor.exit_code == 0:
                self._is_asked = False  # who still waits asks again each second
                return 0.0  # it was unmounted before we saw it mounted: no failure
            if not self._was_mounted:
                self._remove_files()
                raise
            if await self._is_wanted():
                _log.warning("client failed to come back", mount=self.paths.name, error=str(error))
                self.say(failed(error))
        else:
            await self._end_processes(grace=_END_GRACE if self._ended.is_set() else 0.0)
            return time.monotonic() - began
        return 0.0

    async def _start(self) -> Supervisor:
        """Until the mount is there, served by this client."""
        began, supervisor = time.monotonic(), self._supervisor
        if supervisor is None:
            self._starting()
            supervisor = self._supervisor = await self._launcher.launch(
                self.paths, self.settings, log=self._client_log, is_new=not self._was_mounted
            )
        spawned = time.monotonic()
        await self._until(lambda: self._is_up(supervisor, began=began, spawned=spawned))
        if self._attempt:
            self.say(ClientReady(after_ms=_since(began)))
        return supervisor

    def _is_up(self, supervisor: Supervisor, *, began: float, spawned: float) -> bool:
        """True if the mount is served.

        Raises:
            CommandFailed: it never will be.
        """
        if supervisor.serving() is not None and self._is_mounted:
            return True
        now = time.monotonic()
        complaint = self._client_log.complaint() if now > spawned + _COMPLAINT_TIMEOUT else None
        is_hopeless = complaint is not None and complaint.reason.startswith(_HOPELESS)
        if is_hopeless or supervisor.is_over or now > began + _START_TIMEOUT:
            words = self._client_log.last_words()
            raise CommandFailed(f"{words.reason}: {words.line}", reason=words.reason)
        return False

    async def _until(self, is_true: Callable[[], bool]) -> None:
        """Look at each change of the mount table, and every now and then."""
        async with self._table.changes() as changed:
            while not is_true():
                changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await changed.wait()

    async def _serve(self, supervisor: Supervisor) -> None:
        """Until this life's end."""
        self._is_ready, self._is_asked = True, False
        self._ended.clear()
        if not self._was_mounted:
            self._was_mounted = True
            with suppress(OSError):  # only a start of ours would look at it, and then at the mount table too
                write_state(self.paths, self.settings, is_mounted=True)
        # What follows is no part of the call that started it.
        log.request_id.set("")
        structlog.contextvars.unbind_contextvars("request_id", "rpc")
        await supervisor.over()
        self._is_ready = False

    async def _end_processes(self, *, grace: float) -> None:
        """A serving child may outlive its supervisor: it has to make way for the next."""
        if not await end_all(self.paths.alive, grace=grace):
            _log.error("a process of the client can't be found", mount=self.paths.name)
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.reap()
            self.say(ClientExited(exit_code=supervisor.exit_code, last_line=self._client_log.last_line()))

    async def _is_wanted(self) -> bool:
        """True if it was asked for, or if something is mounted or bound still; also while the node can't tell."""
        clock = asyncio.get_running_loop().time
        patience = clock() + _REPORT_PATIENCE
        while not (self._is_asked or self._ended.is_set() or self._is_mounted):
            try:
                mounts = await self._node.report()
            except DriverError:
                if clock() > patience:
                    return True
                await asyncio.sleep(_LOOK)
            else:
                return is_used(mounts.get(self.paths.name)) or self._is_asked
        return self._is_asked or not self._ended.is_set()

    def _remove_files(self) -> None:
        if not is_alive(self.paths.alive):
            remove_files(self.paths)

    def _starting(self) -> None:
        self._attempt += 1
        self.say(ClientStarting(attempt=self._attempt))

    @property
    def _is_mounted(self) -> bool:
        entry = self._table.top(str(self.paths.mount_point))
        return entry is not None and entry.is_juicefs


def failed(error: DriverError) -> MountFailed:
    """The event that tells why a client's mount is not there."""
    reason = error.reason if isinstance(error, CommandFailed) else UNKNOWN
    return MountFailed(reason=reason, message=str(error).removeprefix(f"{reason}: "))


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
