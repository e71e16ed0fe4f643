"""The demo's output: a line a step with what was checked and how long it took, the live event tap beside it."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class CheckFailed(Exception):
    """Something the demo promised did not hold."""


def check(held: object, what: str) -> None:
    """Go on only if it held.

    Raises:
        CheckFailed: says what did not.
    """
    if not held:
        raise CheckFailed(what)


async def until(condition: Callable[[], Any], *, timeout: float, what: str) -> float:
    """Seconds until the condition holds.

    Raises:
        CheckFailed: it does not within `timeout` seconds.
    """
    started = time.monotonic()
    while not condition():
        check(time.monotonic() - started < timeout, f"{what} (waited {timeout:.0f} s)")
        await asyncio.sleep(0.02)
    return time.monotonic() - started


@dataclass(kw_only=True)
class Timeline:
    """Prints as things happen; nothing is kept but the count."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    width: int = field(default_factory=lambda: max(shutil.get_terminal_size((140, 24)).columns, 80))
    colour: bool = field(default_factory=lambda: sys.stdout.isatty() and "NO_COLOR" not in os.environ)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def title(self, text: str) -> None:
        print(f"\n{self._paint(text, '1')}", flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """One step: the caller appends what it checked."""
        begun, checked = time.monotonic(), list[str]()
        print(f"{begun - self.started:6.1f} s  {self._paint('…', '33')} {what}", flush=True)
        try:
            yield checked
        except BaseException as error:
            cause = str(error) or type(error).__name__
            print(f"{'':9} {self._paint('✗', '31')} {what}: {cause}", flush=True)
            raise
        self.steps += 1
        took = f"{(time.monotonic() - begun) * 1000:.0f} ms"
        print(f"{'':9} {self._paint('✓', '32')} {'; '.join(checked)}  {self._paint(f'({took})', '2')}", flush=True)

    async def follow(self, tap: asyncio.StreamReader) -> None:
        """The tap's lines as they come, set off to the right of the steps."""
        while line := (await tap.readline()).decode(errors="replace").rstrip():
            print(self._paint(f"{'':14}┆ {line}"[: self.width], "36"), flush=True)

    def end(self) -> None:
        total = time.monotonic() - self.started
        print(f"\n{self._paint(f'{self.steps} steps, every check held, {total:.1f} s', '1;32')}", flush=True)
