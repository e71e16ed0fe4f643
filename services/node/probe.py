"""Asks mounts whether their clients answer, without ever being held up by one that doesn't.

A system call into a hung FUSE file system can't be cancelled, so each question runs in a thread of its own, at most
one for each mount at a time; those who come meanwhile share it. One hung client costs one thread, however often it is
asked about (promise 9).
"""

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Final

from shared.errors import DriverError, NotReady
from shared.mounttable import MountEntry
from shared.threads import in_thread

PATIENCE: Final = 1.5
"""Seconds after which a client that has not answered is called hung (promise 9 allows 2)."""


_ENDED: Final = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESHUTDOWN}
"""What the kernel answers for a connection that has ended; any other error is the file system's."""


class DeadMount(NotReady):
    """The mount's client is gone and its connection has ended."""


class Probes:
    """The questions in flight, by device and root."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._asked: dict[tuple[str, str], tuple[float, asyncio.Future[os.statvfs_result]]] = {}

    async def ask(self, entry: MountEntry) -> os.statvfs_result:
        """The size of the file system as its client tells it now.

        Raises:
            DeadMount: the connection has ended. NotReady: no answer within `PATIENCE` seconds.
        """
        key = (entry.device, entry.root)
        if key not in self._asked:
            asked = in_thread(lambda: os.statvfs(entry.mount_point), name=f"probe {entry.device}")
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
            self._asked[key] = (time.monotonic(), asked)
        since, answer = self._asked[key]
        remaining = max(since + PATIENCE - time.monotonic(), 0)
        try:
            async with asyncio.timeout(remaining):
                return await asyncio.shield(answer)
        except TimeoutError:
            raise NotReady(f"the client of {entry.source} at {entry.mount_point} does not answer") from None
        except OSError as error:
            if error.errno not in _ENDED:
                raise NotReady(f"the client of {entry.source} answers with an error: {error.strerror}") from error
            raise DeadMount(f"the client of {entry.source} is gone: {error.strerror}") from error

    async def is_dead(self, entry: MountEntry) -> bool:
        """True if the mount's connection has ended.

        Raises:
            NotReady: the client hangs, or answers with an error.
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
