"""Services killed and NATS away, at any moment: the same call again succeeds, or the opposite call cleans up."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress

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


async def interrupted(machine: Local, service: str, call: asyncio.Task[None], *, after: float) -> None:
    """Kill the service with -9 at this moment of the call, and start it again."""
    await asyncio.wait({call}, timeout=after)
    machine.driver.running[service].kill()
    with suppress(GRPCError, StreamTerminatedError, ConnectionError):
        await asyncio.wait_for(call, 60)
    await machine.driver.stop(service)
    await machine.driver.start(service)


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
    """Promise 6: at ten moments; the same call again gives one mount and one bind."""
    moments = random.Random(1)  # noqa: S311 - the same moments in every run
    for _ in range(MOMENTS):
        call = asyncio.create_task(machine.csi.publish("interrupted", machine.target("kill", "interrupted")))
        await interrupted(machine, service, call, after=moments.uniform(0, 0.4))
        await published(machine, "interrupted")
        await nothing_left(machine, "interrupted")


@pytest.mark.parametrize("service", ["node", "mountpod"])
async def test_killed_while_unpublishing(machine: Local, service: str) -> None:
    """Promise 6: at ten moments; nothing is left, and the volume can be published again."""
    moments = random.Random(2)  # noqa: S311 - the same moments in every run
    for _ in range(MOMENTS):
        await published(machine, "interrupted")
        call = asyncio.create_task(machine.csi.unpublish("interrupted", machine.target("kill", "interrupted")))
        await interrupted(machine, service, call, after=moments.uniform(0, 0.05))
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
