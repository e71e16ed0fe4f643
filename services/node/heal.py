"""Healing: targets of a dead client are bound to the living one; a client that never comes back is given up.

Most deaths need none of this: the next client takes the descriptor from the keeper and carries on the connection.
Rebinding is for the rest: client and node service killed together, a client that can't hand over.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from services.node.mounts import Mounts
from services.node.targets import Targets
from shared.api.juicefs.v1 import ClientLost
from shared.errors import DriverError
from shared.mounttable import MountTable

log = structlog.get_logger()

PERIOD: Final = 5.0
"""Seconds between rounds when nothing changes: every event has a slow twin."""
LOST: Final = 3.0
"""Seconds without a client until others are told: most deaths are over by then."""
_SOON: Final = 1.0


class Healer:
    """Looks at every mount after each change of the mount table, and every `PERIOD` seconds.

    `grace` is how many seconds a dead client's calls wait for the next client before they fail. With `are_copied`,
    workloads have the targets in mount namespaces of their own.
    """

    def __init__(
        self, *, table: MountTable, mounts: Mounts, targets: Targets, grace: float, are_copied: bool = False
    ) -> None:
        self._table = table
        self._mounts = mounts
        self._targets = targets
        self._grace = grace
        self._are_copied = are_copied
        self._orphans: dict[str, float] = {}
        self._alone: dict[str, float] = {}

    async def run(self) -> None:
        """Heal until cancelled."""
        clock = asyncio.get_running_loop().time
        due = clock()
        async with self._table.changes() as changed:
            while True:
                changed.clear()
                is_due = clock() >= due
                if is_due:
                    due = clock() + (_SOON if self._alone.keys() - self._mounts.lost else PERIOD)
                try:
                    await self._rebind()
                    if is_due:
                        self._give_up()
                        self._mounts.refetch()
                except Exception as error:
                    log.exception("healing failed; the next round tries again", exc_info=error)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await changed.wait()

    async def _rebind(self) -> None:
        """Exactly one mount remains at each target, however often this happens."""
        for name, stray, present in list(self._mounts.strays()):
            try:
                if name not in self._mounts.closing and await self._targets.answers(present):
                    await self._targets.rebind(stray, present, mount=name, is_copied=self._are_copied)
            except (OSError, DriverError) as error:
                log.warning("could not heal; the next round tries again", mount=name, error=str(error))

    def _give_up(self) -> None:
        """Tell that a client is lost; after the grace an error is better than a hang."""
        now = asyncio.get_running_loop().time()
        orphans = self._mounts.orphans()
        self._orphans = {name: self._orphans.get(name, now) for name in orphans}
        self._alone = {name: self._alone.get(name, now) for name, is_claimed in orphans.items() if not is_claimed}
        self._mounts.lost = {name for name, since in self._alone.items() if now - since >= LOST}
        for name in self._mounts.lost:
            self._mounts.say(ClientLost(), mount=name)
        for name, since in self._orphans.items():
            if now - since >= self._grace:
                log.warning("no client came back: its connection is aborted", mount=name, seconds=round(now - since))
                self._mounts.give_up(name, after=now - since)
