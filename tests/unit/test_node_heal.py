"""When the node gives a client up, and how often it looks; the clock is a fake one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from services.node.heal import LOST, PERIOD, Healer
from shared.api.juicefs.v1 import ClientLost
from shared.mounttable import MountEntry, MountTable

pytestmark = pytest.mark.looptime
GRACE = 60.0


class Mounts:
    """Clients that are dead, and when each was given up."""

    def __init__(self) -> None:
        self.dead: list[str] = []
        self.given_up: dict[str, float] = {}
        self.looks = 0
        self.lost: set[str] = set()
        self.told: list[float] = []
        self.is_broken = False

    def strays(self) -> Iterator[tuple[str, MountEntry, MountEntry]]:
        self.looks += 1
        if self.is_broken:
            raise RuntimeError
        return iter(())

    def orphans(self) -> dict[str, bool]:
        return dict.fromkeys(self.dead, False)

    def give_up(self, name: str, *, after: float) -> None:
        self.dead.remove(name)
        self.given_up[name] = asyncio.get_running_loop().time()
        assert after >= GRACE

    def refetch(self) -> None: ...

    def say(self, what: ClientLost, *, mount: str) -> None:
        assert mount in self.lost, what
        self.told.append(asyncio.get_running_loop().time())


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


@asynccontextmanager
async def healing(mounts: Mounts) -> AsyncIterator[MountTable]:
    table = MountTable()
    healer = Healer(table=table, mounts=mounts, targets=None, grace=GRACE)  # type: ignore[arg-type]
    running = asyncio.create_task(healer.run())
    await asyncio.sleep(0)
    try:
        yield table
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_a_client_that_never_comes_back_is_given_up_after_the_grace(mounts: Mounts) -> None:
    """An error is better than a hang, but no sooner: its workloads wait so long for the next client."""
    mounts.dead = ["a", "b"]
    async with healing(mounts):
        await asyncio.sleep(GRACE / 2)
        mounts.dead.append("late")
        await asyncio.sleep(GRACE * 2)
    assert mounts.given_up.keys() == {"a", "b", "late"}
    assert GRACE <= mounts.given_up["a"] <= GRACE + 2 * PERIOD
    assert GRACE * 1.5 <= mounts.given_up["late"] <= GRACE * 1.5 + 2 * PERIOD


async def test_others_hear_of_a_client_that_is_lost(mounts: Mounts) -> None:
    """Not of one that comes back in a moment."""
    async with healing(mounts):
        mounts.dead = ["quick"]
        await asyncio.sleep(PERIOD + 1)
        mounts.dead = []
        await asyncio.sleep(PERIOD)
        assert not mounts.told
        mounts.dead = ["a"]
        died = asyncio.get_running_loop().time()
        await asyncio.sleep(PERIOD + LOST + 1)
    assert LOST <= mounts.told[0] - died <= PERIOD + LOST
    assert mounts.lost == {"a"}


async def test_one_that_came_back_has_its_whole_grace_again(mounts: Mounts) -> None:
    """Only seconds in a row count."""
    mounts.dead = ["a"]
    async with healing(mounts):
        await asyncio.sleep(GRACE - 2 * PERIOD)
        mounts.dead = []
        await asyncio.sleep(2 * PERIOD)
        mounts.dead = ["a"]
        await asyncio.sleep(GRACE - 2 * PERIOD)
    assert mounts.given_up == {}


async def test_each_change_is_looked_at_and_so_is_no_change(mounts: Mounts) -> None:
    """Every event has a slow twin."""
    async with healing(mounts) as table:
        table.nudge()
        await asyncio.sleep(1)
        assert mounts.looks == 2
        await asyncio.sleep(PERIOD * 10)
        assert mounts.looks == 12


async def test_a_round_that_fails_is_not_the_last(mounts: Mounts) -> None:
    """Whatever one client's mount looks like, the others are healed."""
    mounts.is_broken = True
    async with healing(mounts):
        await asyncio.sleep(PERIOD)
        mounts.is_broken, mounts.dead = False, ["a"]
        await asyncio.sleep(GRACE + 2 * PERIOD)
    assert mounts.given_up.keys() == {"a"}
