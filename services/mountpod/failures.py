"""Clients that could not be started: what is answered until the next try is due."""

import asyncio
from dataclasses import dataclass
from typing import Final

from shared.errors import DriverError

_FORGET: Final = 120.0


def back_off(failures: int) -> float:
    """Seconds until the next try after so many failures in a row: 0, 1, 2, 4 … 30."""
    return min(2.0 ** (failures - 1), 30.0) if failures else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """`error` is answered until `until` (the loop's seconds), the next may then try."""

    error: DriverError
    count: int
    until: float


class Failures:
    """By mount name: one client per back-off step, however often it is asked for (promise 10)."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def add(self, name: str, error: DriverError) -> float:
        """Remember why; the seconds until the next try."""
        count = self._failures[name].count + 1 if name in self._failures else 1
        pause = back_off(count)
        until = asyncio.get_running_loop().time() + pause
        self._failures[name] = _Failure(error=error.with_traceback(None), count=count, until=until)
        return pause

    def check(self, name: str) -> None:
        """Raises what went wrong last, as long as the next try is not due."""
        failure = self._failures.get(name)
        if failure is not None and asyncio.get_running_loop().time() < failure.until:
            raise failure.error.with_traceback(None)

    def knows(self, name: str) -> bool:
        """True while the next try may have to wait."""
        return name in self._failures

    def forget(self, name: str) -> None:
        """It runs, or has ended in order."""
        self._failures.pop(name, None)

    def tidy(self) -> None:
        """Forget what nobody asked for again."""
        now = asyncio.get_running_loop().time()
        self._failures = {name: one for name, one in self._failures.items() if now < one.until + _FORGET}
