"""The kernel's mount table: what is mounted where, and when that changes. The driver's only reference count.

Format: proc(5), "/proc/pid/mountinfo". A change is signalled by EPOLLPRI on the open file, for every mount and
unmount in this mount namespace, so nobody has to poll.
"""

import asyncio
import os
import select
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

JUICEFS: Final = "fuse.juicefs"
_ESCAPED: Final = " \t\n\\"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of the table. `root` is the directory of the file system that is seen at `mount_point`."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: frozenset[str]
    fs_type: str
    source: str

    @property
    def is_juicefs(self) -> bool:
        return self.fs_type == JUICEFS

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options

    @property
    def minor(self) -> int:
        """Also the number of the FUSE connection below /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


def _entry(line: str) -> MountEntry:
    left, _, right = line.partition(" - ")
    mount_id, parent_id, device, root, mount_point, options = left.split(" ", 6)[:6]
    fs_type, source, _ = right.split(" ", 2)
    return MountEntry(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device,
        root=_unescape(root),
        mount_point=_unescape(mount_point),
        options=frozenset(options.split(",")),
        fs_type=fs_type,
        source=_unescape(source),
    )


def _escape(text: str) -> str:
    """As the kernel writes a path."""
    return "".join(f"\\{ord(char):03o}" if char in _ESCAPED else char for char in text)


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class MountTable:
    """Reads the table afresh each time, and wakes those who wait for a change."""

    def __init__(self, path: Path = Path("/proc/self/mountinfo")) -> None:
        self._path = path
        self._waiters: set[asyncio.Event] = set()

    def read(self, *, having: str = "") -> list[MountEntry]:
        """What is mounted now; only the lines with this text, which is much cheaper than to parse them all."""
        return [_entry(line) for line in self._lines(having)]

    def _lines(self, having: str) -> list[str]:
        text = self._path.read_bytes().decode("utf-8", "surrogateescape")
        # Only a newline ends a line: Python would split at more characters than the kernel escapes.
        return [line for line in text.split("\n") if line and having in line]

    def clients(self) -> list[MountEntry]:
        """Every mount of JuiceFS: clients' own, and binds of them."""
        return self.read(having=f" - {JUICEFS} ")

    def is_inside_client(self, path: str) -> bool:
        """True if the path lies below a mount of JuiceFS: to look it up is to ask a client."""
        points = (_unescape(line.split(" ", 5)[4]) for line in self._lines(f" - {JUICEFS} "))
        return any(path.startswith(f"{point}/") for point in points)

    def at(self, path: str) -> list[MountEntry]:
        """The layers mounted at this path, the top one last: each is the parent of the next.

        The order of the lines does not tell: a mount that was slid beneath another is listed after it.
        """
        layers = {
            entry.mount_id: entry for entry in self.read(having=f" {_escape(path)} ") if entry.mount_point == path
        }

        def depth(entry: MountEntry) -> int:
            return 1 + depth(layers[entry.parent_id]) if entry.parent_id in layers else 0

        return sorted(layers.values(), key=depth)

    def top(self, path: str) -> MountEntry | None:
        """The mount that a path walk ends in, or None."""
        layers = self.at(path)
        return layers[-1] if layers else None

    async def run(self) -> None:
        """Watch for changes until cancelled; without it nobody who waits is woken."""
        loop = asyncio.get_running_loop()
        with _priority_events(self._path) as descriptor:
            loop.add_reader(descriptor.fileno(), self._wake, descriptor)
            try:
                await loop.create_future()
            finally:
                loop.remove_reader(descriptor.fileno())

    def _wake(self, descriptor: select.epoll) -> None:
        descriptor.poll(0)
        self.nudge()

    def nudge(self) -> None:
        """Wake those who wait for a change: something else happened that they look at as well."""
        for event in self._waiters:
            event.set()

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[asyncio.Event]:
        """An event that is set at each change; the caller clears it before it reads."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            yield event
        finally:
            self._waiters.discard(event)


@contextmanager
def _priority_events(path: Path) -> Iterator[select.epoll]:
    """An epoll descriptor that becomes readable at each change: the loop itself can wait for EPOLLIN only."""
    table = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with select.epoll() as epoll:
            epoll.register(table, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)
            epoll.poll(0)
            yield epoll
    finally:
        os.close(table)
