"""A client's processes, as the kernel shows them: a supervisor, and its child that serves the FUSE connection.

Both, and whatever they start, hold the client's `alive` file (`shared.alive`) open as the same descriptor, from their
start to their end. So the file tells which processes are a client's, across restarts of ours: no number of a process is
kept that might be another's by now, and there is no moment at which a client runs and isn't known.

A client now and then asks its own mount. When it is killed just then, nobody answers, and the kernel keeps the process
until somebody does, or the connection is aborted: it runs no more, but holds its files, and its end is not signalled.
Such a process counts as ended here, else the client that would answer could never start.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from shared.alive import is_alive

UNKNOWN_CODE: Final = -1
"""The exit code of a supervisor that was started before a restart of ours: only its parent is told."""
_ALIVE_DESCRIPTOR: Final = 3
_FUSE_DEVICE: Final = Path("/dev/fuse")
_KILL_PATIENCE: Final = 1.0
_LOOK: Final = 1.0
_STEP: Final = 0.02


class Supervisor:
    """One supervisor, watched by pidfd; `gone` is set, and `on_exit` called, when it has ended.

    A client outlives us: nothing here ends it unless told so.
    """

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self.pid = pid
        self.exit_code = UNKNOWN_CODE
        self.gone = asyncio.Event()
        self._on_exit = on_exit
        self._known_since = time.monotonic()
        self._pidfd = os.pidfd_open(pid)
        self._is_watched = True
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path,
        alive: int,
        on_exit: Callable[[], None],
    ) -> Self:
        """Start a client in a session of its own; it inherits `alive`, a locked descriptor, and prints to `log`.

        posix_spawn(3) costs a fifth of the loop's own subprocesses (performance.md), which also end with us.
        """
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, alive, _ALIVE_DESCRIPTOR),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
        return cls(pid, on_exit)

    @classmethod
    def find(cls, alive: Path, on_exit: Callable[[], None]) -> Self | None:
        """The supervisor that holds this file: the leader of its session."""
        for pid in _holders(alive):
            with suppress(ProcessLookupError):
                if os.getsid(pid) == pid and not _is_killed(pid):
                    return cls(pid, on_exit)
        return None

    def age(self) -> float:
        """Seconds that it has lived at least."""
        return time.monotonic() - self._known_since

    def serving(self) -> int | None:
        """The child that holds the FUSE device; None while there is none, as before a mount."""
        return next((child for child in self._children() if _holds(child, _FUSE_DEVICE)), None)

    def _children(self) -> Iterator[int]:
        """Of every thread: a child belongs to the thread that started it (proc(5))."""
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with suppress(OSError):
                yield from map(int, task.read_text().split())

    @property
    def is_over(self) -> bool:
        """True once it runs no more."""
        return self.gone.is_set() or _is_killed(self.pid)

    async def over(self) -> None:
        """Wait for that."""
        while not self.is_over:
            await self._gone_within(_LOOK)

    async def end(self, *, patience: float, grace: float) -> None:
        """Wait `patience` seconds for it to end by itself, then send SIGTERM, and SIGKILL `grace` seconds later."""
        for seconds, number in ((patience, signal.SIGTERM), (grace, signal.SIGKILL)):
            await self._gone_within(seconds)
            if self._is_watched:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)

    async def _gone_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone.wait()

    def release(self) -> None:
        """Stop watching; the client goes on."""
        if self._is_watched:
            self._is_watched = False
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _exited(self) -> None:
        self.release()
        self.reap()
        self.gone.set()
        self._on_exit()

    def reap(self) -> None:
        """Take the exit codes of the whole group: orphans come to us when we are a container's first process."""
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_PGID, self.pid, os.WEXITED | os.WNOHANG)) is not None:
                if ended.si_pid == self.pid:
                    self.exit_code = ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)


def is_supervisor(pid: int) -> bool:
    """True if a client has this number now."""
    with suppress(OSError):
        return _alive_file(pid).readlink().name == "alive"
    return False


async def end_all(alive: Path, *, grace: float) -> bool:
    """End every process of a client: SIGTERM and `grace` seconds, then SIGKILL; none runs any more when this returns.

    False if the file is locked by a process that can't be seen from here.
    """
    told: set[int] = set()
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_PATIENCE)):
        told = set()
        deadline = time.monotonic() + patience
        while is_alive(alive) and time.monotonic() < deadline:
            for pid in set(_holders(alive)) - told:
                told.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            await asyncio.sleep(_STEP)
    if is_alive(alive) and not told.issuperset(_holders(alive) or {0}):
        return False
    alive.unlink(missing_ok=True)  # what was killed and hangs holds the lock on a file of the past
    return True


def _is_killed(pid: int) -> bool:
    """True for a process with SIGKILL pending, or whose first thread has ended (proc(5), /proc/pid/status)."""
    try:
        # A process may call itself anything, but not by more than one line.
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").split("\n")
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    except OSError:
        return True
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return status["State"].startswith(("Z", "X")) or bool(pending >> (signal.SIGKILL - 1) & 1)


def _holders(alive: Path) -> list[int]:
    """Every process that has this file open where `spawn` put it. Asks no file anything, so nothing here can hang."""
    path = Path(os.path.realpath(alive))
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if _holder_of(int(entry.name)) == path:
                    found.append(int(entry.name))
    return found


def _holder_of(pid: int) -> Path:
    """What a process has open where `spawn` put the `alive` file; one whose first thread has ended tells by another."""
    try:
        return _alive_file(pid).readlink()
    except FileNotFoundError:
        if _is_killed(pid):
            for other in Path(f"/proc/{pid}/task").glob(f"*/fd/{_ALIVE_DESCRIPTOR}"):
                return other.readlink()
        raise


def _holds(pid: int, path: Path) -> bool:
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink() == path:
                    return True
    return False


def _alive_file(pid: int) -> Path:
    return Path(f"/proc/{pid}/fd/{_ALIVE_DESCRIPTOR}")
