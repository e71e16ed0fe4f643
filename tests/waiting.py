"""Tests never sleep: they wait for a condition, with a deadline."""

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], *, within: float = 10.0) -> None:
    """Raise TimeoutError if the condition does not come within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come")
        await asyncio.sleep(0.01)
