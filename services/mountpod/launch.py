"""Brings a client's process up: all that has to be there before it, in the order that a kill of ours can't spoil.

1. the node makes mount point, directory and hand-over socket
2. client.json       from here on a start of ours finds the client, or what is left of it
3. credentials.json
4. format            once per credentials: a file system that is new has to be
5. the process       holding the lock on `alive`: from here on it is found by that
6. fuse_fd_comm      for the node; made again when a client is adopted
"""

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from services.mountpod.client_log import ClientLog
from services.mountpod.credentials import Credentials
from services.mountpod.node import NodeService
from services.mountpod.supervisor import Supervisor, is_supervisor
from shared import alive
from shared.errors import Busy, CommandFailed, DriverError, NotReady
from shared.filesystem import Filesystem
from shared.formatting import ensure_formatted
from shared.juicefs import Juicefs
from shared.layout import Client as ClientPaths
from shared.private_file import draft_of, write_private
from shared.settings import ClientSettings

_PREPARE_TIMEOUT: Final = 10.0
_PREPARE_AGAIN_TIMEOUT: Final = 5.0
_FORMAT_TIMEOUT: Final = 12.0
_TMP: Final = "/tmp"  # noqa: S108 - the client's choice
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"}


class Launcher:
    """Starts clients, and finds those that run. `on_exit` is called whenever one of them has ended."""

    def __init__(
        self, *, juicefs: Juicefs, credentials: Credentials, node: NodeService, on_exit: Callable[[], None]
    ) -> None:
        self._juicefs = juicefs
        self._credentials = credentials
        self._node = node
        self._on_exit = on_exit
        self._formatting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._formatted: set[str] = set()

    async def launch(self, paths: ClientPaths, settings: ClientSettings, *, log: ClientLog, is_new: bool) -> Supervisor:
        """Start a client; `is_new` unless it is to carry on a mount that was there before.

        Raises:
            DriverError: what is missing, or the client's own words.
        """
        await self._prepare(paths, is_new=is_new)
        try:
            write_state(paths, settings, is_mounted=not is_new)
            filesystem = self._credentials.keep(paths, settings.credentials)
            log.mask(filesystem.marks)
            if is_new:
                await self._ensure_formatted(filesystem)
            log.begin()
            return self._spawn(paths, settings, filesystem)
        except OSError as error:
            raise NotReady(f"the client can't be started: {error.strerror}: {error.filename}") from None

    def adopt(self, paths: ClientPaths, settings: ClientSettings, *, log: ClientLog) -> Supervisor | None:
        """The supervisor that runs already, if one does."""
        with suppress(DriverError):
            log.mask(self._credentials.keep(paths, settings.credentials).marks)
        supervisor = Supervisor.find(paths.alive, self._on_exit)
        if supervisor is not None:
            _show_own_socket(paths, supervisor.pid)
        return supervisor

    async def _prepare(self, paths: ClientPaths, *, is_new: bool) -> None:
        """A client that was mounted is healed without the bus: its directory and socket are there already."""
        try:
            await self._node.prepare(paths.name, timeout=_PREPARE_TIMEOUT if is_new else _PREPARE_AGAIN_TIMEOUT)
        except NotReady:
            if is_new or not _is_listened_to(paths.comm_socket):
                raise

    async def _ensure_formatted(self, filesystem: Filesystem) -> None:
        async with self._formatting[filesystem.credentials]:
            if filesystem.credentials in self._formatted:
                return
            try:
                await ensure_formatted(self._juicefs, filesystem, timeout=_FORMAT_TIMEOUT)
            except NotReady as error:
                reason, colon, _ = str(error).partition(": ")
                raise CommandFailed(str(error), reason=reason) if colon and reason.isupper() else error from None
            self._formatted.add(filesystem.credentials)

    def forget_format(self, credentials: str) -> None:
        """The file system of these credentials is gone: the next start makes sure again."""
        self._formatted.discard(credentials)

    def _spawn(self, paths: ClientPaths, settings: ClientSettings, filesystem: Filesystem) -> Supervisor:
        command = self._juicefs.mount(filesystem, settings, paths.mount_point)
        environment = (
            _DEFAULTS
            | command.whole_environment()
            | {
                "JFS_FOREGROUND": "1",
                "JFS_INSIDE_CONTAINER": "1",
                "JFS_SUPER_COMM": str(paths.comm_socket),
            }
        )
        lock = alive.lock(paths.alive)
        if lock is None:
            raise Busy("a process of the client before this one has not ended")
        try:
            supervisor = Supervisor.spawn(command.argv, environment, log=paths.log, alive=lock, on_exit=self._on_exit)
        finally:
            os.close(lock)
        _show_own_socket(paths, supervisor.pid)
        return supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What `client.json` tells of a client."""

    settings: ClientSettings
    is_mounted: bool


def write_state(paths: ClientPaths, settings: ClientSettings, *, is_mounted: bool) -> None:
    """Keep what the client was started with, and whether its mount was ever there."""
    state = {"settings": settings.to_json(), "digest": settings.digest, "mounted": is_mounted}
    write_private(paths.state, orjson.dumps(state))


def read_state(paths: ClientPaths) -> State | None:
    """None if there is no client, or none that can be understood."""
    try:
        state = orjson.loads(paths.state.read_bytes())
        found = State(settings=ClientSettings.from_json(state["settings"]), is_mounted=bool(state["mounted"]))
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    return found if found.settings.mount_name == paths.name else None


def remove_files(paths: ClientPaths) -> None:
    """Remove what mountpod keeps beside a client that has ended, `client.json` last: it is what a start looks for."""
    remove_own_socket(paths)
    for path in (paths.credentials, paths.alive, paths.log, paths.state):
        draft_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def remove_own_socket(paths: ClientPaths) -> None:
    """Remove what the client itself left in /tmp, unless its number is another client's by now."""
    with suppress(OSError, ValueError):
        pid = int(paths.own_socket.readlink().suffix.removeprefix("."))
        if not is_supervisor(pid):
            for name in (f"fuse_fd_comm.{pid}", f"state{pid}.json", f"state{pid}.json.bak"):
                Path(_TMP, name).unlink(missing_ok=True)
    paths.own_socket.unlink(missing_ok=True)


def _is_listened_to(path: Path) -> bool:
    """True if the node keeps the hand-over socket: without it a client would mount over the dead one, or fail."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(str(path))
        return True
    return False


def _show_own_socket(paths: ClientPaths, pid: int) -> None:
    """Point to the client's own socket, for the node; the client chooses its place."""
    remove_own_socket(paths)
    with suppress(OSError):
        paths.own_socket.symlink_to(f"{_TMP}/fuse_fd_comm.{pid}")
