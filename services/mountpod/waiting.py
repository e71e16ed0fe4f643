"""How long a client is waited for: since when, whether anybody still asks, and when to have a look at what goes on.

Seconds are the loop's. A publish that waits asks again each second; one that was given up asks no more.
"""

import asyncio
from typing import Final

_PATIENCE: Final = 8.0
_LATE: Final = 24.0
_UNWANTED: Final = 40.0
_UNWANTED_START: Final = 150.0


class Waiting:
    """For one client. What was there before us counts as asked for when we came."""

    def __init__(self) -> None:
        self._asked = _now()
        self._began: float | None = None
        self._wondered = 0.0
        self.is_doubted = False

    @property
    def is_begun(self) -> bool:
        """True from the first time that somebody asks to its end."""
        return self._began is not None

    def ask(self) -> None:
        """Somebody waits for it; when that takes long, it is worth a look."""
        self._asked = _now()
        if self._began is None:
            self._began = self._wondered = self._asked
        self.is_doubted = self.is_doubted or self._asked > self._began + _PATIENCE

    def doubt(self) -> bool | None:
        """Whether a look is due (None: not), and then whether it is so late that silence is an answer, too."""
        if not self.is_doubted or self._began is None:
            return None
        self.is_doubted = False
        return _now() > self._began + _LATE

    def wonders(self) -> bool:
        """True once in a while when it takes long: for a question that costs the API server more than a look."""
        if self._began is None or _now() < self._wondered + _LATE:
            return False
        self._wondered = _now()
        return True

    def is_forgotten(self, *, is_stuck: bool) -> bool:
        """True if nobody asked in a while. What is on its way gets longer: its image may be big."""
        return self._asked < _now() - (_UNWANTED if is_stuck else _UNWANTED_START)

    def end(self) -> None:
        """It serves, or has failed: whoever asks next begins anew."""
        self._began = None
        self.is_doubted = False


def _now() -> float:
    return asyncio.get_running_loop().time()
