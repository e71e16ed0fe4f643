"""Keys of objects that want attention, and who gives it: several at once, never two for one key, failures again later.

A key says only "look": what is to be done is read from the world when its turn comes, so a key that is added twice is
looked at once, and one that is added while somebody looks is looked at once more.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from shared import log
from shared.errors import NotReady

_FIRST: Final = 1.0  # seconds until the second try
_LONGEST: Final = 60.0
_log = structlog.get_logger()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raises NotReady when that takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise NotReady(f"not done within {seconds:g} s: it is tried again") from None


class Worklist:
    """Calls `look` with each key. An exception of it means: again, after 1, 2, 4 … 60 s, each a little more or less."""

    def __init__(self, look: Callable[[str], Awaitable[None]], *, name: str, workers: int) -> None:
        self._look = look
        self._name = name
        self._workers = workers
        self._waiting: deque[str] = deque()
        self._queued: set[str] = set()
        self._running: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        """Keys that wait for a turn or have it."""
        return len(self._queued | self._running)

    def add(self, key: str) -> None:
        """Look at this one soon; a failure before doesn't count any more."""
        self._failures.pop(key, None)
        self._enqueue(key)

    async def run(self) -> None:
        """Until cancelled, which ends what is being looked at."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    self._start()
                    await asyncio.get_running_loop().create_future()
                finally:
                    self._tasks = None  # so that nothing is begun while the others end
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def _enqueue(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key not in self._queued:
            self._queued.add(key)
            self._waiting.append(key)
            self._start()

    def _start(self) -> None:
        """Give turns to those whose key nobody looks at; the others have theirs when that one is done."""
        if self._tasks is None:
            return
        for _ in range(len(self._waiting)):
            if len(self._running) >= self._workers:
                return
            key = self._waiting.popleft()
            if key in self._running:
                self._waiting.append(key)
                continue
            self._queued.discard(key)
            self._running.add(key)
            turn = self._turn(key)
            try:
                self._tasks.create_task(turn, name=f"{self._name} {key}")
            except RuntimeError:  # the program ends
                turn.close()

    async def _turn(self, key: str) -> None:
        try:
            await self._look(key)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            self._fail(key, error)  # something that it waited for was cut off
        except Exception as error:  # noqa: BLE001 - one object never stops the others (promise 24)
            self._fail(key, error)
        else:
            self._failures.pop(key, None)
        finally:
            self._running.discard(key)
        self._start()

    def _fail(self, key: str, error: BaseException) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(_LONGEST, _FIRST * 2 ** min(count - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        _log.warning("to be done again", list=self._name, key=key, cause=log.in_words(error), seconds=round(seconds, 1))
        if key not in self._queued:
            self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._enqueue, key)
