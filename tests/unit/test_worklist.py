"""Who is looked at when, and never twice at a time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.controller.worklist import Worklist
from shared.errors import NotReady
from tests.waiting import until


class Looker:
    """Looks at keys, each until it is told to go on."""

    def __init__(self) -> None:
        self.looking: Counter[str] = Counter()
        self.looked: list[str] = []
        self.failures: dict[str, list[BaseException]] = {}
        self.gate = asyncio.Event()

    async def look(self, key: str) -> None:
        self.looked.append(key)
        self.looking[key] += 1
        try:
            await self.gate.wait()
            if self.failures.get(key):
                raise self.failures[key].pop(0)
        finally:
            self.looking[key] -= 1


@asynccontextmanager
async def working(looker: Looker, *, workers: int = 10) -> AsyncIterator[Worklist]:
    worklist = Worklist(looker.look, name="keys", workers=workers)
    task = asyncio.create_task(worklist.run())
    try:
        yield worklist
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not any(looker.looking.values())


async def test_one_key_is_never_looked_at_twice_at_a_time() -> None:
    """What is added meanwhile is looked at once more, however often it was added."""
    looker = Looker()
    async with working(looker) as worklist:
        worklist.add("a")
        await until(lambda: looker.looking["a"])
        for key in ("a", "b", "a", "a"):
            worklist.add(key)
        await until(lambda: looker.looking["b"])
        assert looker.looking == {"a": 1, "b": 1}

        looker.gate.set()
        await until(lambda: not len(worklist))
    assert sorted(looker.looked) == ["a", "a", "b"]


async def test_only_so_many_are_looked_at_at_once() -> None:
    """`workers`."""
    looker = Looker()
    async with working(looker, workers=2) as worklist:
        for key in "abcde":
            worklist.add(key)
        await until(lambda: looker.looking.total() == 2)
        looker.gate.set()
        await until(lambda: not len(worklist))
    assert looker.looked == list("abcde")


async def test_what_was_added_before_is_not_lost() -> None:
    """A list is filled before anybody works."""
    looker = Looker()
    looker.gate.set()
    worklist = Worklist(looker.look, name="keys", workers=1)
    worklist.add("a")
    task = asyncio.create_task(worklist.run())
    await until(lambda: looker.looked == ["a"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.looptime(start=0.0)
@pytest.mark.parametrize("failure", [NotReady("away"), RuntimeError("a fault"), asyncio.CancelledError()])
async def test_a_failure_is_looked_at_again_later_and_later(failure: BaseException) -> None:
    """Promise 24: whatever it is, the others go on; after a success all is forgotten."""
    looker = Looker()
    looker.gate.set()
    looker.failures["a"] = [failure] * 3
    clock = asyncio.get_running_loop().time
    async with working(looker) as worklist:
        worklist.add("a")
        worklist.add("b")
        await until(lambda: len(looker.looked) == 5, within=60)
        assert 0.8 * 7 <= clock() <= 1.2 * 7 + 0.1
        assert not worklist._failures
        assert not worklist._timers


@pytest.mark.looptime(start=0.0)
async def test_who_is_added_again_does_not_wait() -> None:
    """What was wrong may have been put right."""
    looker = Looker()
    looker.gate.set()
    looker.failures["a"] = [NotReady("away")] * 6
    async with working(looker) as worklist:
        worklist.add("a")
        await until(lambda: len(looker.looked) == 6, within=100)
        began = asyncio.get_running_loop().time()
        worklist.add("a")
        await until(lambda: len(looker.looked) == 7, within=100)
        assert asyncio.get_running_loop().time() - began < 0.1
