"""The CSI socket: gRPC services on a unix socket, from the moment it can be trusted until the last call is answered."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog
from grpclib._typing import IServable
from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from shared.errors import InUse, InvalidRequest
from shared.metrics import Metrics
from shared.rpc import Interceptor, Requests

_MODE: Final = 0o660  # kubelet and the sidecars are root, or share the socket's group
_CLOSING: Final = 1.0  # seconds
_LONGEST: Final = 107  # bytes of a socket's path (unix(7): sun_path is 108 with the NUL)

_log = structlog.get_logger()


class Endpoint:
    """Serves `services` at `address`: `unix:///path`, `unix:path` or a plain path."""

    def __init__(self, address: str, services: Sequence[IServable], *, metrics: Metrics) -> None:
        self.path = _path(address)
        self.serving = asyncio.Event()
        self._services = services
        self._interceptor = Interceptor(metrics=metrics)
        self._identity: tuple[int, int] | None = None

    @property
    def in_flight(self) -> int:
        """Calls that are not answered yet."""
        return self._interceptor.in_flight

    @property
    def is_in_place(self) -> bool:
        """True while the socket at the path is our own: nobody has removed it, no successor has taken the name."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            InUse: another process answers on this socket, or something that is no socket is in its place.
        """
        server = _Server(self._services, codec=Requests())
        self._interceptor.attach(server)
        await self._listen(server)
        _log.info("serving CSI", socket=str(self.path))
        self.serving.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.serving.clear()
            self._remove_socket()
            self._interceptor.refuse()
            server.close()  # cancels what still runs, which is answered all the same
            await self._interceptor.drain(_CLOSING)
            server.hang_up()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING):
                    await server.wait_closed()

    async def drain(self, grace: float) -> None:
        """Take the socket away, refuse new calls, and let the running ones finish, `grace` seconds at most."""
        self.serving.clear()
        self._remove_socket()
        await self._interceptor.drain(grace)

    async def _listen(self, server: Server) -> None:
        """Listen under another name first: the socket gets its mode and its place in one step, over a stale one too.

        That name is hidden, as kubelet takes every other socket in its directory of plugins for one.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_occupied(self.path)
        draft = self.path.with_name(f".{self.path.name}")
        draft.unlink(missing_ok=True)
        await server.start(path=str(draft))
        draft.chmod(_MODE)
        found = draft.stat()
        self._identity = (found.st_dev, found.st_ino)
        draft.rename(self.path)

    def _remove_socket(self) -> None:
        """Only our own: a successor may have taken the name."""
        if self.is_in_place:
            self.path.unlink(missing_ok=True)


class _Server(Server):
    """Hangs up at the end: grpclib leaves that to the clients, and kubelet never does."""

    def __init__(self, services: Sequence[IServable], *, codec: CodecBase) -> None:
        super().__init__(services, codec=codec)
        self._connections: WeakSet[H2Protocol] = WeakSet()

    def hang_up(self) -> None:
        for connection in self._connections:
            if hasattr(connection, "processor"):  # it has been made
                connection.processor.close()

    def _protocol_factory(self) -> H2Protocol:
        connection = super()._protocol_factory()
        self._connections.add(connection)
        return connection


def _path(address: str) -> Path:
    text = address.removeprefix("unix:")
    text = text.removeprefix("//") if address.startswith("unix:") else text
    if not text or "://" in text or len(os.fsencode(f".{text}")) > _LONGEST:
        raise InvalidRequest(f"the CSI endpoint must be a unix socket's path of at most {_LONGEST - 1} bytes")
    return Path(text)


def _refuse_occupied(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise InUse(f"{path} exists and is no socket: remove it, or choose another endpoint")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # nobody listens: left behind by one that was killed
        except BlockingIOError:
            pass  # somebody listens, and is busy
    raise InUse(f"another process answers on {path}: stop it, or choose another endpoint")
