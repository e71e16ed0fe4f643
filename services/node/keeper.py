"""Keeps each client's FUSE descriptor, so that a client that dies or is replaced finds its connection again.

The protocol is the client's own (behaviour.md 4.9). At start a client connects to our socket (JFS_SUPER_COMM) and is
sent what we hold: setup bytes and, if there is one, the descriptor. It answers `CLOSE` when it took the descriptor of
a client before it, or nothing; later it connects again and hands its descriptor in. We keep our own copy until a newer
one has arrived, so that a client killed in between loses nothing; and we close it when a client is ended on purpose,
since whoever holds a copy keeps accesses hanging instead of failing.
"""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from contextvars import Context
from pathlib import Path
from typing import Final

import betterproto2

from shared import mounter
from shared.api.juicefs.v1 import DescriptorKept, DescriptorTaken
from shared.layout import Client

_NOTHING: Final = b"FUSE"
_TAKEN: Final = b"CLOSE"
_MAX_SETUP: Final = 4096
_ANSWER_TIMEOUT: Final = 30.0
# struct fuse_out_header with FUSE_NOTIFY_RESEND (linux/fuse.h, Linux 6.9): what the dead client had read and not
# answered goes to the next one; without it those calls wait until the client gives them up with EINTR.
_RESEND: Final = struct.pack("=IiQ", 16, 7, 0)


class Keeper:
    """The hand-over socket of one client, and the descriptor that it gave us.

    `say` is told when a client took our descriptor, and when one handed its own in.
    """

    def __init__(
        self, client: Client, *, tasks: asyncio.TaskGroup, say: Callable[[betterproto2.Message], None]
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._say = say
        self._setup = _NOTHING
        self._descriptor: int | None = None
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._task: asyncio.Task[None] | None = None

    @property
    def holds(self) -> bool:
        """True while a copy of the descriptor is here."""
        return self._descriptor is not None

    def open(self) -> None:
        """Listen for the client."""
        listener = _listen(self._client.comm_socket)
        self._task = self._tasks.create_task(
            self._serve(listener),
            name=f"keeper {self._client.name}",
            context=Context(),  # what it hears later is no part of the request that it was opened for
        )
        self._task.add_done_callback(lambda _: listener.close())  # also if it is cancelled before it begins

    def close(self) -> None:
        """Stop listening and forget the descriptor: the client is ended on purpose."""
        if self._task is not None:
            self._task.cancel()
        self._client.comm_socket.unlink(missing_ok=True)
        self.forget()
        os.close(self._null)

    def forget(self) -> None:
        """Close our copy: once no client holds one, the kernel ends the connection."""
        self._setup = _NOTHING
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as conversations:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError:  # out of descriptors: it may pass
                    await asyncio.sleep(1.0)
                    continue
                conversations.create_task(self._converse(connection))

    async def _converse(self, connection: socket.socket) -> None:
        """One client's turn: it hears what we hold and says what it did."""
        with closing(connection), suppress(OSError, TimeoutError):
            if not _is_own(connection):
                return
            if self._descriptor is not None and _has_ended(self._descriptor):
                self.forget()
            held = [self._null] if self._descriptor is None else [self._null, self._descriptor]
            socket.send_fds(connection, [self._setup], held)
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                message, descriptors = await _receive(connection)
            self._hear(message, descriptors)

    def _hear(self, message: bytes, descriptors: list[int]) -> None:
        fuse = [descriptor for descriptor in descriptors if mounter.is_fuse_device(descriptor)]
        if message == _TAKEN and self._descriptor is not None:
            with suppress(OSError):
                os.write(self._descriptor, _RESEND)
            self._say(DescriptorTaken())
        elif message and fuse:
            self.forget()
            self._setup, self._descriptor = message, fuse.pop()
            with suppress(OSError):
                self._client.served.touch(mode=0o600)
            self._say(DescriptorKept())
        for descriptor in descriptors:
            if descriptor != self._descriptor:
                os.close(descriptor)

    async def fetch(self) -> None:
        """Ask a client that outlived us for its descriptor; it then hands it in at our socket as at its start."""
        for path in self._client.own_sockets:
            with suppress(OSError, TimeoutError):
                await self._ask(path, gives_back=True)
                return

    async def release(self) -> bool:
        """Have the client give its descriptor away, so that it ends when it is told to start anew; True if it did.

        Our copy of before stays: the next client takes it.
        """
        for path in self._client.own_sockets:
            with suppress(OSError, TimeoutError):
                return await self._ask(path, gives_back=False)
        return False

    async def _ask(self, path: Path, *, gives_back: bool) -> bool:
        """The client gives its copy away; it takes it back with our answer, or is told that we keep it: then True."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(0)
            connection.connect(str(path))
            if not _is_own(connection):
                return False
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                setup, descriptors = await _receive(connection)
            with_fuse = [descriptor for descriptor in descriptors if mounter.is_fuse_device(descriptor)]
            if with_fuse and gives_back:
                socket.send_fds(connection, [setup], with_fuse)
            elif with_fuse:
                connection.send(_TAKEN)
                self.forget()
                self._setup, self._descriptor = setup, with_fuse.pop()
            for descriptor in descriptors:
                if descriptor != self._descriptor:
                    os.close(descriptor)
            return self._descriptor in descriptors


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(0)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(8)
    return listener


def _has_ended(descriptor: int) -> bool:
    """True for a connection that was aborted or unmounted: nobody can carry it on."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _is_own(connection: socket.socket) -> bool:
    """Only a process of our own user may speak: a descriptor is a file system."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


async def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One message with its descriptors; the loop's own sock_recv can't take descriptors."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection.fileno())
    message, descriptors, _, _ = socket.recv_fds(connection, _MAX_SETUP, 4)
    return message, descriptors
