"""One leads, and when it can't, another does."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import pytest

from shared.errors import NotReady
from shared.kubernetes import LEASES, Kubernetes
from shared.lease import Lease, Timing
from tests.api_server import ApiServer
from tests.waiting import until

QUICK = Timing(duration=3, deadline=2.0, retry=0.3)
CONTENDER = """
import asyncio, sys
from shared import log
from shared.kubernetes import Kubernetes
from shared.lease import Lease, Timing

async def work():
    print("leading", flush=True)
    await asyncio.get_running_loop().create_future()

async def main(kubeconfig, name):
    async with Kubernetes.connect(kubeconfig=kubeconfig) as api:
        timing = Timing(duration=3, deadline=2.0, retry=0.3)
        await Lease(api, name=name, namespace="default", identity="other", timing=timing).lead(work)

log.configure()
asyncio.run(main(*sys.argv[1:]))
"""


class Contender:
    """Its work is to say so, until it is cancelled."""

    def __init__(self, api: Kubernetes, lease: str, identity: str = "one") -> None:
        self.api = api
        self.name = lease
        self.works = False
        self.ended_at = 0.0
        self.lease = Lease(api, name=lease, namespace="default", identity=identity, timing=QUICK)

    async def work(self) -> None:
        self.works = True
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.works = False
            self.ended_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.lease.lead(self.work))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def spec(self) -> dict[str, Any]:
        return dict((await self.api.get(LEASES, self.name, namespace="default"))["spec"])


@pytest.fixture
def one(api: Kubernetes) -> Contender:
    return Contender(api, f"t-{token_hex(4)}")


@pytest.fixture
def two(api: Kubernetes, one: Contender) -> Contender:
    return Contender(api, one.name, "two")


@asynccontextmanager
async def process(server: ApiServer, lease: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A contender that can be killed, once it leads."""
    arguments = ("-c", CONTENDER, str(server.kubeconfig), lease)
    running = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert running.stdout is not None
        assert await asyncio.wait_for(running.stdout.readline(), 10) == b"leading\n"
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def passed(seconds: float) -> None:
    """So much time, in which nothing is to happen."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    await until(lambda: clock() > end)


async def test_the_lease_says_who(one: Contender) -> None:
    async with one.running():
        await until(lambda: one.works)
        spec = await one.spec()

    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("one", 3, 0)
    assert spec["acquireTime"].startswith("20")


async def test_only_one_works(one: Contender, two: Contender) -> None:
    """The second waits, however long the first one goes on."""
    async with one.running():
        await until(lambda: one.works)
        async with two.running():
            renewed = (await one.spec())["renewTime"]
            await passed(QUICK.duration + 1)
            assert (one.works, two.works) == (True, False)
            assert (await one.spec())["renewTime"] > renewed


async def test_of_many_at_once_one_wins(api: Kubernetes, one: Contender) -> None:
    """Also when there was no lease before."""
    many = [Contender(api, one.name, f"n{number}") for number in range(8)]
    async with AsyncExitStack() as stack:
        for contender in many:
            await stack.enter_async_context(contender.running())
        await until(lambda: any(contender.works for contender in many))
        await passed(QUICK.retry * 3)
        assert [contender.works for contender in many].count(True) == 1


async def test_the_same_one_returns_at_once(api: Kubernetes, one: Contender) -> None:
    """A container that is started again in its pod need not wait for itself."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 3600, "renewTime": now}
    await api.create(LEASES, {"metadata": {"name": one.name}, "spec": spec}, namespace="default")
    async with one.running():
        await until(lambda: one.works, within=5)


async def test_a_lease_without_content_is_free(api: Kubernetes, one: Contender) -> None:
    await api.create(LEASES, {"metadata": {"name": one.name}}, namespace="default")
    async with one.running():
        await until(lambda: one.works, within=5)


async def test_released_in_an_orderly_end(one: Contender, two: Contender) -> None:
    """The next one need not wait until the lease is over."""
    async with one.running():
        await until(lambda: one.works)
    begun = asyncio.get_running_loop().time()

    assert (await one.spec()).get("holderIdentity", "") == ""
    async with two.running():
        await until(lambda: two.works)
        assert asyncio.get_running_loop().time() < begun + QUICK.duration
        assert (await one.spec())["leaseTransitions"] == 1


async def test_work_that_ends_releases(one: Contender) -> None:
    async def work() -> None:
        assert one.lease.is_leader

    await one.lease.lead(work)

    assert not one.lease.is_leader
    assert (await one.spec()).get("holderIdentity", "") == ""


async def test_an_error_of_the_work_is_raised(one: Contender) -> None:
    async def work() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await one.lease.lead(work)
    assert (await one.spec()).get("holderIdentity", "") == ""


async def test_killed_without_a_word(server: ApiServer, one: Contender) -> None:
    """Another takes over once the lease is over, not before."""
    async with process(server, one.name) as other, one.running():
        other.kill()
        killed = asyncio.get_running_loop().time()
        await until(lambda: one.works)

        assert QUICK.duration - 2 * QUICK.retry < asyncio.get_running_loop().time() - killed < QUICK.duration + 2


async def test_frozen_and_back(server: ApiServer, one: Contender) -> None:
    """A leader that was stopped for longer than its lease ends when it wakes up."""
    async with process(server, one.name) as other, one.running() as leading:
        os.kill(other.pid, signal.SIGSTOP)
        await until(lambda: one.works)
        os.kill(other.pid, signal.SIGCONT)
        assert await asyncio.wait_for(other.wait(), 10) != 0
        assert one.works
        assert not leading.done()


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_work_ends_before_the_lease(server: ApiServer, one: Contender, how: str) -> None:
    """A leader that can't renew stops its work while nobody else can have begun."""
    clock = asyncio.get_running_loop().time
    async with one.running() as leading:
        await until(lambda: one.works)
        if how == "killed":
            server.kill()
            away = clock()
            await asyncio.wait({leading}, timeout=10)
            server.start()
        else:
            with server.silent():
                away = clock()
                await asyncio.wait({leading}, timeout=10)
        assert one.ended_at < away + QUICK.deadline + 0.5 < away + QUICK.duration
        assert not one.lease.is_leader
        with pytest.raises(NotReady, match=f"the lease {one.name} was lost"):
            leading.result()
    await one.spec()


async def test_taken_by_force(api: Kubernetes, one: Contender) -> None:
    """Somebody who writes another name into it ends the work at the next renewal."""
    async with one.running() as leading:
        await until(lambda: one.works)
        await api.patch(LEASES, one.name, {"spec": {"holderIdentity": "thief"}}, namespace="default")
        await asyncio.wait({leading}, timeout=5)

        with pytest.raises(NotReady, match="thief holds it"):
            leading.result()


async def test_touched_by_others_it_stays_ours(api: Kubernetes, one: Contender) -> None:
    """An annotation, or even its removal, is no reason to stop."""
    async with one.running() as leading:
        await until(lambda: one.works)
        await api.patch(LEASES, one.name, {"metadata": {"annotations": {"a": "b"}}}, namespace="default")
        uid = (await api.get(LEASES, one.name, namespace="default"))["metadata"]["uid"]
        await api.delete(LEASES, one.name, namespace="default", uid=uid)
        await passed(QUICK.duration)

        assert (await one.spec())["holderIdentity"] == "one"
        assert not leading.done()


async def test_waits_for_the_api_server(server: ApiServer, one: Contender) -> None:
    server.kill()
    async with one.running() as leading:
        server.start()
        await until(lambda: one.works, within=20)
        assert not leading.done()
