"""A crowd that asks the same is one question."""

import asyncio
import gc

import pytest

from services.mountpod.recent import Recent

pytestmark = pytest.mark.looptime


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    async def ask(self) -> int:
        self.asked += 1
        await asyncio.sleep(0.1)
        if self.error is not None:
            raise self.error
        return self.asked


async def test_who_asks_at_the_same_time_shares_an_answer() -> None:
    """Promise 12: a hundred publishes of one volume read its Secret once."""
    source, recent = Source(), Recent[str, int]()
    answers = await asyncio.gather(*(recent.get("v", source.ask, fits=lambda _: True) for _ in range(100)))
    assert (set(answers), source.asked) == ({1}, 1)


async def test_an_answer_is_old_after_a_second() -> None:
    source, recent = Source(), Recent[str, int]()
    await recent.get("v", source.ask, fits=lambda _: True)
    await asyncio.sleep(1.0)
    assert await recent.get("v", source.ask, fits=lambda _: True) == 2


async def test_an_answer_that_does_not_fit_is_asked_for_again() -> None:
    """Promise 19: a changed Secret is never answered with the old one."""
    source, recent = Source(), Recent[str, int]()
    await recent.get("v", source.ask, fits=lambda _: True)
    assert await recent.get("v", source.ask, fits=lambda answer: answer > 1) == 2


async def test_an_error_is_not_kept() -> None:
    source, recent = Source(), Recent[str, int]()
    source.error = ValueError()
    with pytest.raises(ValueError):  # noqa: PT011 - it says nothing
        await recent.get("v", source.ask, fits=lambda _: True)
    source.error = None
    assert await recent.get("v", source.ask, fits=lambda _: True) == 2


async def test_an_error_that_nobody_waits_for_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """All publishes had given up when it came: asyncio has nothing to complain about."""
    source, recent = Source(), Recent[str, int]()
    source.error = ValueError()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await recent.get("v", source.ask, fits=lambda _: True)
    await asyncio.sleep(2.0)
    gc.collect()
    assert not caplog.records


async def test_who_leaves_takes_the_answer_from_nobody() -> None:
    """A publish that is cancelled does not cancel the question that others wait for."""
    source, recent = Source(), Recent[str, int]()
    first = asyncio.create_task(recent.get("v", source.ask, fits=lambda _: True))
    second = asyncio.create_task(recent.get("v", source.ask, fits=lambda _: True))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1
