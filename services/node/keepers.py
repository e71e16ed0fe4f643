"""The keepers of this machine's clients: one for each that runs, or that is about to start."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

import betterproto2

from services.node.keeper import Keeper
from shared import alive
from shared.api.juicefs.v1 import DescriptorKept, DescriptorTaken
from shared.events import Say
from shared.layout import Layout
from shared.metrics import Metrics

_REFETCH: Final = 30.0
"""Seconds without a living client's descriptor until it is asked for again; also how long one fetch may take."""


class Keepers:
    """By mount name."""

    def __init__(self, *, layout: Layout, say: Say, metrics: Metrics) -> None:
        self._layout = layout
        self._say = say
        self._metrics = metrics
        self._keepers: dict[str, Keeper] = {}
        self._lacking: dict[str, float] = {}
        self._orphaned: set[str] = set()

    def open(self, name: str, tasks: asyncio.TaskGroup) -> Keeper:
        """The client's keeper, listening."""
        if name not in self._keepers:
            keeper = Keeper(self._layout.client(name), tasks=tasks, say=partial(self._heard, name))
            keeper.open()
            self._keepers[name] = keeper
        return self._keepers[name]

    def get(self, name: str) -> Keeper | None:
        return self._keepers.get(name)

    def close(self, name: str) -> None:
        """The client is ended on purpose, or never came."""
        if keeper := self._keepers.pop(name, None):
            keeper.close()

    def orphans(self) -> dict[str, bool]:
        """The mounts whose client has died, and whose connection we keep open until another one has handed it in.

        True if a client has come for it; that one may fail as well.
        """
        found = {}
        for name in [name for name, keeper in self._keepers.items() if keeper.holds]:
            is_claimed = alive.is_alive(self._layout.client(name).alive)
            if name in self._orphaned or not is_claimed:
                found[name] = is_claimed
        self._orphaned = set(found)
        return found

    def overdue(self, present: Iterable[str]) -> Iterator[str]:
        """Clients among `present` to ask again, whose descriptor we lack: a fetch may have failed, or come too early.

        One fetch at a time: a client that hangs does not answer sooner.
        """
        now = time.monotonic()
        lacking = [name for name in present if (keeper := self._keepers.get(name)) and not keeper.holds]
        self._lacking = {name: self._lacking.get(name, now) for name in lacking}
        for name, since in self._lacking.items():
            if now - since > _REFETCH:
                self._lacking[name] = now + _REFETCH
                yield name

    def _heard(self, name: str, what: betterproto2.Message) -> None:
        """What a keeper tells: a descriptor that was taken is a client that was healed."""
        if isinstance(what, DescriptorTaken):
            self._metrics.heals.labels("hand-over").inc()
        if isinstance(what, DescriptorKept):
            self._orphaned.discard(name)
        self._say(what, mount=name)
