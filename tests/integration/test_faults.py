"""Services killed and NATS away, at any moment: the same call again succeeds, or the opposite call cleans up."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Self

import pytest
import pytest_asyncio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from demo.orchestrator import working
from shared import mounter
from tests.integration.local import Local, local, status, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
MOMENTS = 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine() -> AsyncIterator[Local]:
    async with local("nats", "mountpod", "node") as machine:
        yield machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Seconds from the begin of a call: to the kill, and to the end of NATS (0: before the call) if it is stopped."""

    kill: float
    stop: float | None

    @classmethod
    def some(cls, seed: int, *, within: float) -> Iterator[Self]:
        """The same in every run. In every other one NATS is away: from before the call, or from within it."""
        random = Random(seed)  # noqa: S311 - what is wanted is that they repeat
        for number in range(MOMENTS):
            kill, stop = random.uniform(0, within), random.uniform(0, within)
            yield cls(kill=kill, stop=[None, 0.0, None, stop][number % 4])


async def interrupted(
    machine: Local, service: str, call: Callable[[], Coroutine[None, None, None]], *, at: Moment
) -> None:
    """Kill the service with -9 at this moment of the call, and start it again; NATS is there again afterwards."""

    async def stop_nats() -> None:
        if at.stop:
            await asyncio.wait({calling}, timeout=at.stop)
            await machine.driver.stop("nats", signal.SIGKILL)

    async def kill() -> None:
        await asyncio.wait({calling}, timeout=at.kill)
        machine.driver.running[service].kill()

    if at.stop == 0:
        await machine.driver.stop("nats", signal.SIGKILL)
    calling = asyncio.create_task(call())
    await asyncio.gather(kill(), stop_nats())
    with suppress(GRPCError, StreamTerminatedError, ConnectionError):
        await asyncio.wait_for(calling, 60)
    await machine.driver.stop(service)
    await machine.driver.start(service)
    if at.stop is not None:
        await machine.driver.start("nats")


async def again(call: Callable[[], Coroutine[None, None, None]]) -> None:
    """As kubelet does it: the same call, until it succeeds."""
    async with asyncio.timeout(30):
        while await status(call()) is not Status.OK:
            await asyncio.sleep(0.05)


async def published(machine: Local, volume: str) -> None:
    """One mount, however often it was called."""
    target = machine.target("kill", volume)
    await again(lambda: machine.csi.publish(volume, target))
    assert len(machine.layers(target)) == 1


async def nothing_left(machine: Local, volume: str) -> None:
    """Promise 6: no bind, no client, no directory, within 10 s."""
    target = machine.target("kill", volume)
    await again(lambda: machine.csi.unpublish(volume, target))
    assert machine.layers(target) == []
    await until(lambda: not machine.driver.clients() and not machine.driver.layout.names(), timeout=10)


@pytest.mark.parametrize("service", ["node", "mountpod"])
async def test_killed_while_publishing(machine: Local, service: str) -> None:
    """Promise 6: at ten moments, NATS stopped in five; the same call again gives one mount and one bind."""
    target = machine.target("kill", "interrupted")
    for moment in Moment.some(1, within=0.4):
        await interrupted(machine, service, lambda: machine.csi.publish("interrupted", target), at=moment)
        await published(machine, "interrupted")
        await nothing_left(machine, "interrupted")


@pytest.mark.parametrize("service", ["node", "mountpod"])
async def test_killed_while_unpublishing(machine: Local, service: str) -> None:
    """Promise 6: at ten moments, NATS stopped in five; nothing is left, and the volume can be published again."""
    target = machine.target("kill", "interrupted")
    for moment in Moment.some(2, within=0.05):
        await published(machine, "interrupted")
        await interrupted(machine, service, lambda: machine.csi.unpublish("interrupted", target), at=moment)
        await nothing_left(machine, "interrupted")


async def test_a_running_client_is_bound_without_nats(machine: Local) -> None:
    """Promise 8: publish and unpublish of a volume whose client runs here need no bus; a new one does, and says so."""
    one, two, new = (machine.target(pod, "away") for pod in ("one", "two", "new"))
    await machine.csi.publish("away", one)
    await machine.driver.stop("nats")
    await machine.csi.publish("away", two)
    await machine.csi.unpublish("away", one)
    with pytest.raises(GRPCError, match="NATS is away") as refusal:
        await machine.csi.publish("unknown", new)
    await machine.driver.start("nats")
    assert refusal.value.status is Status.UNAVAILABLE
    assert (len(machine.layers(one)), len(machine.layers(two))) == (0, 1)
    await machine.csi.unpublish("away", two)


async def test_a_client_heals_without_nats(machine: Local) -> None:
    """Promise 8: healing works on the machine alone."""
    target = machine.target("heal", "away")
    await machine.csi.publish("away", target)
    await asyncio.to_thread((target / "greeting").write_text, "hello")
    await machine.kept(1)
    await machine.driver.stop("nats")
    async with working("read", target) as reader:
        await reader.rounds(30)
        name = machine.name(target)
        await machine.replaced(name, machine.kill_client(name))
        await reader.rounds(30)
    await machine.driver.start("nats")
    assert len(reader.report["errors"]) <= 1
    await machine.csi.unpublish("away", target)


async def test_nats_comes_back_and_everything_goes_on(machine: Local) -> None:
    """Promise 8: clients are started and ended again once NATS is there."""
    target = machine.target("back", "back")
    await machine.driver.stop("nats")
    assert await status(machine.csi.publish("back", target)) is Status.UNAVAILABLE
    await machine.driver.start("nats")
    await again(lambda: machine.csi.publish("back", target))
    await machine.csi.unpublish("back", target)
    await until(lambda: not machine.driver.clients(), timeout=100)


async def test_mount_points_of_a_reboot_are_removed(machine: Local) -> None:
    """What lay on the tmpfs is gone, the immutable directories are not: nobody else would remove them."""
    left = machine.driver.layout.mount_root / "rebooted-abcdef"
    mounter.make_mount_point(left)
    await machine.driver.stop("node")
    await machine.driver.start("node")
    assert not left.exists()
