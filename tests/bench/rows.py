"""What the benchmarks say: a row is one figure beside its floor and its bar."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

SETTLE: Final = 0.005
"""Seconds between two samples: what a call leaves to be done later is not measured as part of the next."""
_WHOLE: Final = 100  # from here on, digits after the point say nothing

Sample = Callable[[int], Awaitable[float]]
"""Does the thing once (it is told how often it was done before) and says the figure, mostly the seconds it took."""
Tell = Callable[[str], None]
"""Says how far a long measurement is."""


class Skipped(Exception):
    """Why something can't be measured here; that is no failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the median of its samples, all in `unit`.

    The bar is a multiple of the floor (`times`), a limit of the figure itself (`most`), or there is none.
    """

    name: str
    what: str
    unit: str
    samples: list[float]
    floors: list[float] | None = None
    times: float | None = None
    most: float | None = None

    @property
    def figure(self) -> float:
        return statistics.median(self.samples)

    @property
    def floor(self) -> float | None:
        return statistics.median(self.floors) if self.floors else None

    @property
    def ratio(self) -> float | None:
        """How many times worse than the floor; of a rate (`/s`), less is worse."""
        if self.floor is None:
            return None
        return self.floor / self.figure if self.unit == "/s" else self.figure / self.floor

    @property
    def is_of_cluster(self) -> bool:
        """Of Kubernetes, not of a driver on this machine alone."""
        return self.name.startswith(("k8s-", "scale-"))

    @property
    def bar(self) -> str:
        if self.times is not None:
            return f"≤ {self.times:g} × floor"
        return f"≤ {self.most:g} {self.unit}" if self.most is not None else "–"

    @property
    def verdict(self) -> str:
        """`ok`, `MISSED`, or nothing when there is no bar."""
        if self.times is not None and self.ratio is not None:
            return "ok" if self.ratio <= self.times else "MISSED"
        if self.most is not None:
            return "ok" if self.figure <= self.most else "MISSED"
        return ""

    def cells(self) -> list[str]:
        """As a person reads it: name, figure, floor, ratio, bar, verdict."""
        floor = _spread(self.floors, self.unit) if self.floors else "–"
        ratio = f"{self.ratio:.2f} ×" if self.ratio is not None else "–"
        return [self.name, _spread(self.samples, self.unit), floor, ratio, self.bar, self.verdict]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "figure": _numbers(self.samples),
            "floor": _numbers(self.floors) if self.floors else None,
            "ratio": self.ratio,
            "bar": {"times_floor": self.times, "most": self.most},
            "verdict": self.verdict,
        }


def latency(name: str, mine: list[float], least: list[float], *, what: str, times: float | None = None) -> Row:
    """A row of milliseconds, from samples in seconds."""
    return Row(name=name, what=what, unit="ms", samples=milliseconds(mine), floors=milliseconds(least), times=times)


def _numbers(samples: list[float]) -> dict[str, float]:
    middle = statistics.median(samples)
    return {"median": middle, "min": min(samples), "max": max(samples), "samples": len(samples)}


def _spread(samples: list[float], unit: str) -> str:
    """The median, and in brackets the least and the most if there is more than one sample."""
    shown = [
        f"{number:.0f}" if number >= _WHOLE else f"{number:.3g}"
        for number in (statistics.median(samples), min(samples), max(samples))
    ]
    spread = f" ({shown[1]}–{shown[2]})" if len(samples) > 1 else ""
    return f"{shown[0]} {unit}{spread}"


def milliseconds(seconds: list[float]) -> list[float]:
    return [second * 1000 for second in seconds]


async def timed(work: Awaitable[Any]) -> float:
    """How long it took, in seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def alternate(
    count: int, ours: Sample, floor: Sample, *, tell: Tell | None = None
) -> tuple[list[float], list[float]]:
    """A B A B …, so that whatever else the machine does hits both alike; the first pair only warms up.

    Returns the figures of `ours` and of `floor`.
    """
    mine, least = list[float](), list[float]()
    for number in range(count + 1):
        mine.append(await ours(number))
        await asyncio.sleep(SETTLE)
        least.append(await floor(number))
        await asyncio.sleep(SETTLE)
        if tell is not None:
            tell(f"{number}/{count}")
    return mine[1:], least[1:]
