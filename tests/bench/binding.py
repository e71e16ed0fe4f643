"""Publishes and unpublishes of a volume whose client runs."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.bench.floors import BareBind
from tests.bench.rows import SETTLE, Row, Tell, alternate, latency, milliseconds
from tests.bench.setting import Setting, setting

_SAMPLES: Final = 100
_BURST: Final = 110
_BURSTS: Final = 5
_VOLUME: Final = "bench"


@asynccontextmanager
async def warm_setting() -> AsyncIterator[tuple[Setting, BareBind]]:
    """A client that runs, one target that keeps it, and binds of that by hand."""
    async with setting("nats", "mountpod", "node") as place:
        kept = place.target("kept", _VOLUME)
        await place.publish(_VOLUME, kept)
        yield place, BareBind(server=place.bare, base=place.driver.base, source=str(kept))
        await place.unpublish(_VOLUME, kept)
        await place.no_clients()


async def warm(tell: Tell) -> list[Row]:
    """Publish of a volume whose client runs, as kubelet sees it."""
    async with warm_setting() as (place, bare):

        async def ours(number: int) -> float:
            target = place.target(f"{number}", _VOLUME)
            seconds = await place.publish(_VOLUME, target)
            await asyncio.sleep(SETTLE)
            await place.unpublish(_VOLUME, target)
            return seconds

        async def floor(number: int) -> float:
            seconds = await bare.bind(number)
            await bare.unbind(number)
            return seconds

        mine, least = await alternate(_SAMPLES, ours, floor, tell=tell)
    return [latency("warm", mine, least, what="publish, the client runs", times=6)]


async def unpublish(tell: Tell) -> list[Row]:
    """Unpublish of a target whose client goes on."""
    async with warm_setting() as (place, bare):

        async def ours(number: int) -> float:
            target = place.target(f"{number}", _VOLUME)
            await place.publish(_VOLUME, target)
            await asyncio.sleep(SETTLE)
            return await place.unpublish(_VOLUME, target)

        async def floor(number: int) -> float:
            await bare.bind(number)
            await asyncio.sleep(SETTLE)
            return await bare.unbind(number)

        mine, least = await alternate(_SAMPLES, ours, floor, tell=tell)
    return [latency("unpublish", mine, least, what="unpublish, the client goes on", times=6)]


async def burst(tell: Tell) -> list[Row]:
    """110 targets of one volume, asked for at once: the last one, and the median."""
    middles: list[float] = []
    async with warm_setting() as (place, bare):

        async def ours(number: int) -> float:
            targets = [place.target(f"{number}-{one}", _VOLUME) for one in range(_BURST)]
            began = time.perf_counter()
            each = await asyncio.gather(*(place.publish(_VOLUME, target) for target in targets))
            seconds = time.perf_counter() - began
            middles.append(statistics.median(each))
            await asyncio.gather(*(place.unpublish(_VOLUME, target) for target in targets))
            return seconds

        async def floor(number: int) -> float:
            numbers = range(number * _BURST, (number + 1) * _BURST)
            began = time.perf_counter()
            await asyncio.gather(*(bare.bind(one) for one in numbers))
            seconds = time.perf_counter() - began
            await asyncio.gather(*(bare.unbind(one) for one in numbers))
            return seconds

        mine, least = await alternate(_BURSTS, ours, floor, tell=tell)
    what = f"{_BURST} publishes of one volume at once"
    return [
        Row(name="burst", what=f"{what}: the last", unit="s", samples=mine, floors=least, most=1),
        Row(name="burst-p50", what=f"{what}: the median", unit="ms", samples=milliseconds(middles[1:])),
    ]
