"""Wakes for a name later: once, however often it is asked for meanwhile."""

import asyncio
from collections.abc import Callable


class Alarms:
    """`wake` is called with the name."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._set: set[str] = set()

    def set(self, name: str, seconds: float) -> None:
        """In so many seconds, unless one is set already."""
        if name not in self._set:
            self._set.add(name)
            asyncio.get_running_loop().call_later(seconds, self._ring, name)

    def _ring(self, name: str) -> None:
        self._set.discard(name)
        self._wake(name)
