"""Asks mounts whether their clients answer, without ever being held up by one that doesn't.

A system call into a hung FUSE file system can't be cancelled, so each question runs in a thread of its own, at most
one for each mount at a time; those who come meanwhile share it. One hung client costs one thread, however often it is
asked about (promise 9).
"""

import asyncio
import errno
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import DriverError, NotReady
from shared.mounttable import MountEntry
from shared.threads import in_thread

PATIENCE: Final = 1.5
"""Seconds after which a client that has not answered is called hung (promise 9 allows 2)."""

_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)
_ENDED: Final = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN}
"""What the kernel answers for a connection that has ended; any other error is the file system's."""


class DeadMount(NotReady):
    """The mount's client is gone and its connection has ended."""


class Unmounted(NotReady):
    """The path leads to something else by now, so nothing is known of the mount's client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What one thread asks; `entry` is of who came first."""

    entry: MountEntry
    since: float
    answer: asyncio.Future[os.statvfs_result]


class Probes:
    """The questions in flight, by device and root."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._asked: dict[tuple[str, str], _Question] = {}

    async def ask(self, entry: MountEntry) -> os.statvfs_result:
        """The size of the file system as its client tells it now.

        Raises:
            DeadMount: the connection has ended. Unmounted: it is gone. NotReady: no answer within `PATIENCE` seconds.
        """
        began = time.monotonic()
        while True:
            question = self._question(entry)
            remaining = min(question.since, began) + PATIENCE - time.monotonic()
            try:
                async with asyncio.timeout(max(remaining, 0)):
                    return await asyncio.shield(question.answer)
            except Unmounted as error:
                if question.entry == entry:
                    raise error.with_traceback(None) from None
                # It was another's target that has gone; each round is one asker less.
            except TimeoutError:
                raise NotReady(f"the client of {entry.source} at {entry.mount_point} does not answer") from None
            except OSError as error:
                if error.errno not in _ENDED:
                    raise NotReady(f"the client of {entry.source} answers with an error: {error.strerror}") from error
                raise DeadMount(f"the client of {entry.source} is gone: {error.strerror}") from error

    def _question(self, entry: MountEntry) -> _Question:
        """The one that is in flight, or else a new one."""
        key = (entry.device, entry.root)
        question = self._asked.get(key)
        if question is None or question.answer.done():
            answer = in_thread(lambda: _size(entry), name=f"probe {entry.device}")
            question = self._asked[key] = _Question(entry=entry, since=time.monotonic(), answer=answer)
            answer.add_done_callback(lambda _: self._forget(key, answer))
        return question

    def _forget(self, key: tuple[str, str], answer: asyncio.Future[os.statvfs_result]) -> None:
        if self._asked[key].answer is answer:
            del self._asked[key]

    async def is_dead(self, entry: MountEntry) -> bool:
        """True if the mount's connection has ended.

        Raises:
            Unmounted: it is gone. NotReady: the client hangs, or answers with an error.
        """
        try:
            await self.ask(entry)
        except DeadMount:
            return True
        return False

    def abort(self, entry: MountEntry) -> None:
        """End the connection: every call into it fails from now on, instead of hanging.

        Raises:
            DriverError: the kernel's list of connections can't be reached.
        """
        try:
            (self._control / str(entry.minor) / "abort").write_text("1")
        except FileNotFoundError:
            return
        except OSError as error:
            raise DriverError(f"can't abort FUSE connection {entry.minor}: {error.strerror}") from error


def _size(entry: MountEntry) -> os.statvfs_result:
    """In a thread: what is mounted at the path may be another by now, or nothing, and then this is the disk below."""
    try:
        descriptor = os.open(entry.mount_point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Unmounted(f"{entry.mount_point} has been unmounted") from None
    try:
        found = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text())
        if found is None or int(found[1]) != entry.mount_id:
            raise Unmounted(f"{entry.mount_point} has been unmounted")
        return os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
