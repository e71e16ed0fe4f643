"""Publishes and unpublishes of a volume whose client runs."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.floors import BareBind
from tests.bench.rows import SETTLE, Row, Sample, Tell, alternate, latency, milliseconds
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


@dataclass(kw_only=True)
class Pairs:
    """One target after the other of a volume whose client runs, and the same by hand."""

    place: Setting
    bare: BareBind
    volume: str
    options: str = ""

    def target(self, number: int) -> Path:
        return self.place.target(f"again-{number}", self.volume)

    async def publish(self, number: int) -> float:
        return await self.place.publish(self.volume, self.target(number), options=self.options)

    async def unpublish(self, number: int) -> float:
        return await self.place.unpublish(self.volume, self.target(number))

    async def published(self, count: int, *, tell: Tell) -> tuple[list[float], list[float]]:
        """Seconds of `count` publishes, and of as many floors."""
        return await alternate(
            count, _first(self.publish, self.unpublish), _first(self.bare.bind, self.bare.unbind), tell=tell
        )

    async def unpublished(self, count: int, *, tell: Tell) -> tuple[list[float], list[float]]:
        """Seconds of `count` unpublishes, and of as many floors."""
        return await alternate(
            count, _second(self.publish, self.unpublish), _second(self.bare.bind, self.bare.unbind), tell=tell
        )


def _first(do: Sample, undo: Sample) -> Sample:
    """Do and undo; what is measured is the doing."""

    async def sample(number: int) -> float:
        figure = await do(number)
        await asyncio.sleep(SETTLE)
        await undo(number)
        return figure

    return sample


def _second(do: Sample, undo: Sample) -> Sample:
    """Do and undo; what is measured is the undoing."""

    async def sample(number: int) -> float:
        await do(number)
        await asyncio.sleep(SETTLE)
        return await undo(number)

    return sample


async def warm(tell: Tell) -> list[Row]:
    """Publish of a volume whose client runs, as kubelet sees it."""
    async with warm_setting() as (place, bare):
        found = await Pairs(place=place, bare=bare, volume=_VOLUME).published(_SAMPLES, tell=tell)
    return [latency("warm", *found, what="publish, the client runs", times=6)]


async def unpublish(tell: Tell) -> list[Row]:
    """Unpublish of a target whose client goes on."""
    async with warm_setting() as (place, bare):
        found = await Pairs(place=place, bare=bare, volume=_VOLUME).unpublished(_SAMPLES, tell=tell)
    return [latency("unpublish", *found, what="unpublish, the client goes on", times=6)]


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
