"""Answers that are shared by those who ask at the same time, or within a second: a crowd is one question."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_FRESH: Final = 1.0  # seconds


class Recent(Generic[K, T]):
    """By key. An answer that is an error is given to who waits for it, and to nobody later."""

    def __init__(self) -> None:
        self._asked: dict[K, asyncio.Task[T]] = {}

    async def get(self, key: K, ask: Callable[[], Awaitable[T]], *, fits: Callable[[T], bool]) -> T:
        """The answer of a moment ago if it `fits`, else what `ask` says now."""
        task = self._asked.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() or not fits(task.result()))):
            task = self._asked[key] = asyncio.ensure_future(_awaited(ask))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may have left
            asyncio.get_running_loop().call_later(_FRESH, self._forget, key, task)
        return await asyncio.shield(task)

    def clear(self) -> None:
        """What was said is not so any more."""
        self._asked.clear()

    def _forget(self, key: K, task: "asyncio.Task[T]") -> None:
        if self._asked.get(key) is task:
            del self._asked[key]


async def _awaited(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()
