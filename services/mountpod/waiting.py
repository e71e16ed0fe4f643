"""How long clients are waited for: since when, who still asks, and when to have a look at what goes on.

Seconds are the loop's. A publish that waits asks again each second; one that was given up asks no more.
"""

import asyncio
from typing import Final

_PATIENCE: Final = 8.0
_LATE: Final = 24.0
_UNWANTED: Final = 40.0
_UNWANTED_START: Final = 150.0


class Waiting:
    """By mount name."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._doubted: set[str] = set()

    def ask(self, name: str) -> bool:
        """Somebody waits for it; True if that takes so long that it is worth a look."""
        self._asked[name] = _now()
        if _now() < self._began.setdefault(name, _now()) + _PATIENCE:
            return False
        self._doubted.add(name)
        return True

    def is_doubted(self, name: str) -> bool:
        """True if it is time for a look."""
        return name in self._doubted

    def is_waited(self, name: str) -> bool:
        """True from the first time that somebody asks to its end."""
        return name in self._began

    def doubt(self, name: str) -> bool | None:
        """Whether a look is due (None: not), and then whether it is so late that silence is an answer, too."""
        if name not in self._doubted:
            return None
        self._doubted.discard(name)
        return _now() > self._began.get(name, _now()) + _LATE

    def is_forgotten(self, name: str, *, is_stuck: bool) -> bool:
        """True if nobody asked in a while. What is on its way gets longer: its image may be big."""
        return self._asked.setdefault(name, _now()) < _now() - (_UNWANTED if is_stuck else _UNWANTED_START)

    def end(self, name: str) -> None:
        """It serves, has failed, or is closed: whoever asks next begins anew."""
        for known in (self._asked, self._began):
            known.pop(name, None)
        self._doubted.discard(name)


def _now() -> float:
    return asyncio.get_running_loop().time()
