"""Healing against the real client: by hand-over of the FUSE descriptor, and by rebind."""

import asyncio
import errno
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status

from demo.machine import background
from demo.orchestrator import working
from shared.api.csi.v1 import NodeGetVolumeStatsRequest
from shared.api.juicefs.v1 import RestartReply, RestartRequest
from shared.bus import Bus
from tests.integration.local import Local, local, status, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
ROUNDS = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine() -> AsyncIterator[Local]:
    async with local("nats", "mountpod", "node") as machine:
        yield machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus(machine: Local) -> AsyncIterator[Bus]:
    async with AsyncExitStack() as stack:
        bus = Bus(url=machine.driver.nats_url, service="test", node=machine.driver.node)
        await stack.enter_async_context(background(bus.run()))
        await until(lambda: bus.is_connected)
        yield bus


async def greeting(target: Path) -> None:
    await asyncio.to_thread((target / "greeting").write_text, "hello")


async def test_twenty_kills_are_carried_on(machine: Local) -> None:
    """Promise 17: no ENOTCONN, whatever opens anew succeeds; only a handle open at the kill may be lost."""
    target = machine.target("kill", "killed")
    await machine.csi.publish("killed", target)
    await greeting(target)
    before = machine.layers(target)
    longest = []
    await machine.kept(1)
    for _ in range(ROUNDS):
        async with working("read", target) as reader:
            await reader.rounds(30)  # long enough for the client to count as one that works: no back-off
            name = machine.name(target)
            await machine.replaced(name, machine.kill_client(name))
            await reader.rounds(30)
        lost = [error for error in reader.report["errors"] if f"Errno {errno.EBADF}]" in error]
        assert reader.report["errors"] == lost
        assert len(lost) <= 1
        longest.append(reader.report["longest_ms"])
    print(f"longest stall of each round in ms: {longest}")
    assert machine.layers(target) == before


async def test_twenty_orderly_restarts_are_not_noticed(machine: Local, bus: Bus) -> None:
    """Promise 17: no failed call for a writer with an open handle and fsync every 100 ms."""
    target = machine.target("hup", "restarted")
    await machine.csi.publish("restarted", target)
    name = machine.name(target)
    subject = f"juicefs.rpc.mountpod.{machine.driver.node}.Restart"
    async with working("write", target) as writer:
        for _ in range(ROUNDS):
            await bus.request(subject, RestartRequest(mount=name), RestartReply, timeout=30)
    print(f"longest pause {writer.report['longest_ms']} ms in {writer.report['rounds']} rounds")
    assert writer.report["errors"] == []
    assert len(machine.layers(target)) == 1


async def test_twenty_rebinds_leave_one_mount_each(machine: Local) -> None:
    """Promise 17: client and node service killed together; the target works again, with exactly one mount."""
    one, two = machine.target("re1", "rebound"), machine.target("re2", "rebound")
    for target in (one, two):
        await machine.csi.publish("rebound", target, read_only=target is two)
    await greeting(one)
    name = machine.name(one)
    for _ in range(ROUNDS):
        before = machine.layers(one)[0].device
        machine.driver.running["node"].kill()
        machine.kill_client(name)
        await machine.driver.stop("node")
        await machine.driver.start("node")
        await until(partial(machine.moved, before, one, two), timeout=60)
        assert await asyncio.to_thread((two / "greeting").read_text) == "hello"
        assert [len(machine.layers(target)) for target in (one, two)] == [1, 1]
    assert machine.layers(two)[0].is_read_only


async def test_a_stopped_client_holds_up_nobody_else(machine: Local) -> None:
    """Promise 9: the hung one answers an error within 2 s, others are published meanwhile, SIGCONT heals."""
    hung, other = machine.target("hung", "hung"), machine.target("hung", "other")
    await machine.csi.publish("hung", hung)
    name = machine.name(hung)
    request = NodeGetVolumeStatsRequest(volume_id="hung", volume_path=str(hung))
    machine.kill_client(name, signal.SIGSTOP)
    try:
        async with asyncio.timeout(2):
            assert await status(machine.csi.node.node_get_volume_stats(request)) is Status.UNAVAILABLE
        await asyncio.wait_for(machine.csi.publish("other", other), 10)
    finally:
        machine.kill_client(name, signal.SIGCONT)
    async with asyncio.timeout(5):
        while await status(machine.csi.node.node_get_volume_stats(request)) is not Status.OK:
            await asyncio.sleep(0.05)


async def test_a_hung_target_is_unpublished(machine: Local) -> None:
    """Promise 2: within 10 s, also when the client hangs."""
    target = machine.target("hung", "stuck")
    await machine.csi.publish("stuck", target)
    name = machine.name(target)
    machine.kill_client(name, signal.SIGSTOP)
    try:
        await asyncio.wait_for(machine.csi.unpublish("stuck", target), 10)
        assert machine.layers(target) == []
    finally:
        machine.kill_client(name, signal.SIGCONT)
    await until(lambda: not machine.driver.clients(name))


async def test_a_client_that_never_comes_back_is_given_up() -> None:
    """After the grace its calls fail instead of hanging, the target tells it, and is unpublished all the same."""
    async with local("nats", "mountpod", "node", grace=0.5) as machine:
        target = machine.target("dead", "dead")
        await machine.csi.publish("dead", target)
        await machine.kept(1)
        await machine.driver.stop("mountpod")
        machine.kill_client(machine.name(target))
        request = NodeGetVolumeStatsRequest(volume_id="dead", volume_path=str(target))
        async with asyncio.timeout(20):
            while await status(machine.csi.node.node_get_volume_stats(request)) is not Status.OK:
                await asyncio.sleep(0.05)
        reply = await machine.csi.node.node_get_volume_stats(request)
        assert reply.volume_condition is not None
        assert reply.volume_condition.abnormal
        await asyncio.wait_for(machine.csi.unpublish("dead", target), 10)
        assert machine.layers(target) == []
