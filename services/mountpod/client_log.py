"""What a client printed: a file, not a pipe, since clients outlive us. Its words explain each end and each failure."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shared.diagnosis import UNKNOWN, Diagnosis, diagnose, masked
from shared.domain import Secret

_TAIL: Final = 64 << 10
_LIMIT: Final = 1 << 20
_KEPT: Final = 4 << 10


class ClientLog:
    """The log of one client; `begin` marks where its present start prints first, `mask` what must not be shown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._marks = tuple[Secret, ...]()

    def mask(self, marks: Iterable[Secret]) -> None:
        self._marks = tuple(marks)

    def begin(self) -> None:
        self._start = self._size()

    def last_words(self) -> Diagnosis:
        """What explains a failure of the present start, secrets masked."""
        found = diagnose(self._present(), marks=self._marks)
        return found or Diagnosis(reason=UNKNOWN, line="the client said nothing")

    def complaint(self) -> Diagnosis | None:
        """What a client that has not given up complains of; None while it only tells what it does."""
        lines = [line for line in self._present().splitlines() if "<INFO>" not in line]
        return diagnose("\n".join(lines), marks=self._marks)

    def last_line(self) -> str:
        """The last line of the present start, secrets masked; empty when it printed nothing."""
        lines = self._present().strip().splitlines()
        return masked(lines[-1], self._marks) if lines else ""

    def _present(self) -> str:
        return self._tail(_TAIL, since=self._start)

    def trim(self) -> None:
        """Keep a log that grew past 1 MiB to its last lines. The client appends to whatever is there (O_APPEND)."""
        if self._size() > _LIMIT:
            kept = self._tail(_KEPT).partition("\n")[2].encode()
            os.truncate(self._path, 0)
            self._start = 0
            with self._path.open("ab") as file:
                file.write(kept)

    def _tail(self, count: int, *, since: int = 0) -> str:
        size = self._size()
        if not size:
            return ""
        with self._path.open("rb") as file:
            file.seek(max(since, size - count))
            return file.read(count).decode(errors="replace")

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0
