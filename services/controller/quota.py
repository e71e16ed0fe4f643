"""How much a directory may hold, as `juicefs quota get` shows it: rounded for people, so compared with care."""

import re
from dataclasses import dataclass
from typing import Final, Self

_UNITS: Final = {unit: 1 << (10 * power) for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))}
_SIZE = re.compile(r"(\d+)(\.\d)? (\w+)")
_SIZE_FROM_THE_END: Final = -6  # the path stands before it, and may hold anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """About so many bytes, give or take `error`; 0 when there is no limit. Whole GiB below a TiB are exact."""

    capacity: int = 0
    error: int = 0

    @classmethod
    def parse(cls, table: str) -> Self:
        """From what `juicefs quota get` prints, which is no table at all when there is no quota."""
        rows = [line.strip().strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
        if len(rows) < 2:  # noqa: PLR2004 - the first is the heading
            return cls()
        size = _SIZE.fullmatch(rows[-1][_SIZE_FROM_THE_END].strip())
        if size is None:
            return cls()
        whole, tenth, unit = size.groups()
        scale = _UNITS[unit]
        error = 0 if scale <= _UNITS["GiB"] else scale // 20 if tenth else scale // 2
        return cls(capacity=int(float(whole + (tenth or "")) * scale), error=error)

    def may_be(self, capacity: int) -> bool:
        return abs(self.capacity - capacity) <= self.error

    def exceeds(self, capacity: int) -> bool:
        """Certainly more than `capacity`."""
        return self.capacity - self.error > capacity
