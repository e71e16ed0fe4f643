"""What a client that makes way tells of itself, for the next one to go on with what is open."""

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from shared.errors import NotReady
from shared.mounttable import MountEntry
from shared.private_file import write_private
from shared.threads import in_thread

_PATIENCE: Final = 3.0
_MOST: Final = 1 << 20
_INTERNAL: Final = 0x7FFFFFFF00000000
"""The first inode number of what the client makes up itself (seen with juicefs 1.4.2)."""
_NAMES: Final = (".config", ".jfs.config")
"""The client's file of its settings; the second with the mount option prefix-internal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`state` is the file in which the client saves its handles, as it sees it itself."""

    number: int
    state: str

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises ValueError, KeyError or TypeError for what is no client's file."""
        found: dict[str, Any] = orjson.loads(content)
        state = str(Path(found["StatePath"]))
        if "\n" in state:
            raise ValueError("a path of more than one line")
        return cls(number=int(found["Meta"]["Sid"]), state=state)

    def write(self, path: Path) -> None:
        """Two lines, seen whole or not at all."""
        write_private(path, f"{self.number}\n{self.state}\n".encode())


async def read_session(entry: MountEntry) -> Session:
    """Ask the client that serves this mount.

    Raises:
        NotReady: it does not answer, or not as this kind of client does.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            return await in_thread(lambda: _read(entry.mount_point), name=f"session {entry.device}")
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise NotReady(
            f"the client at {entry.mount_point} does not tell its session ({type(error).__name__})"
        ) from None


def _read(mount_point: str) -> Session:
    for name in _NAMES:
        with suppress(FileNotFoundError):
            descriptor = os.open(Path(mount_point, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                # With the client's own files under other names, a tenant may have one of this name.
                if os.fstat(descriptor).st_ino >= _INTERNAL:
                    return Session.parse(file.read(_MOST))
    raise FileNotFoundError(mount_point)
