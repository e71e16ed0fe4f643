"""juicefs-csi-mount as an operator runs it, on a real nats-server; the clients are only names."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from services.mountpod.node import NodeService
from services.mountpod.reconcile import Reconcile
from services.mountpod.service import MountpodService
from shared.bus import Bus
from shared.errors import DriverError, InUse
from shared.settings import parse
from tests.fakes.runtime import FakeRuntime
from tests.integration.test_tap import saying
from tests.nats_server import NatsServer
from tests.waiting import until

COMMAND = Path(sys.prefix) / "bin" / "juicefs-csi-mount"


class Runtime(FakeRuntime):
    """Says of some clients why they can't be replaced."""

    refusals: dict[str, DriverError]

    async def restart(self, name: str) -> None:
        if name in self.refusals:
            raise self.refusals[name]
        await super().restart(name)


class Cluster:
    """Two nodes with two volumes each."""

    def __init__(self, nats: NatsServer) -> None:
        self.nats = nats
        self.mark = uuid4().hex[:8]
        self.nodes: dict[str, Runtime] = {}

    async def serve(self, bus: Bus, name: str) -> None:
        runtime = self.nodes[name] = Runtime()
        runtime.refusals = {}
        node = NodeService(bus=bus, node=name)
        service = MountpodService(runtime=runtime, reconcile=Reconcile(runtime=runtime, node=node), bus=bus, node=name)
        service.start()
        for volume in ("a", "b"):
            settings = parse(volume_id=f"{volume}-{self.mark}", context={}, mount_options=[], credentials="c")
            await runtime.ensure(settings)
        await until(lambda: all(map(runtime.is_mounted, runtime.clients())))

    def mounts(self, node: str) -> list[str]:
        return sorted(self.nodes[node].clients())

    async def run(self, *arguments: str, url: str = "") -> tuple[int, list[str], str]:
        """Exit code, lines of the output, and what is told beside it."""
        started = await asyncio.create_subprocess_exec(
            COMMAND,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "JUICEFS_CSI_NATS_URL": url or self.nats.url},
        )
        output, told = await asyncio.wait_for(started.communicate(), 30)
        assert started.returncode is not None
        return started.returncode, output.decode().splitlines(), told.decode()


@pytest.fixture
async def cluster(nats: NatsServer) -> AsyncIterator[Cluster]:
    found = Cluster(nats)
    async with AsyncExitStack() as stack:
        for number in (1, 2):
            bus = await stack.enter_async_context(saying(nats))
            await found.serve(bus, f"n{number}-{found.mark}")
        yield found


async def test_clients_are_listed(cluster: Cluster) -> None:
    """By node, with their volumes; for machines, too."""
    volume = f"a-{cluster.mark}"
    code, lines, _ = await cluster.run("list", "--volume", volume)
    assert (code, [line.split() for line in lines]) == (
        0, [[node, cluster.mounts(node)[0], volume] for node in sorted(cluster.nodes)],
    )  # fmt: skip
    _, lines, _ = await cluster.run("list", "--volume", volume, "--node", min(cluster.nodes), "--json")
    node = min(cluster.nodes)
    assert json.loads(lines[0]) == {"node": node, "volume": volume, "mount": cluster.mounts(node)[0]}


async def test_a_nodes_clients_are_replaced_one_after_another(cluster: Cluster) -> None:
    """And no other's."""
    first, second = sorted(cluster.nodes)
    code, lines, _ = await cluster.run("upgrade", "--node", first)
    assert (code, [line.split("]")[0] for line in lines]) == (0, ["[1/2", "[2/2"])
    assert all(" replaced in " in line for line in lines)
    assert (cluster.nodes[first].restarted, cluster.nodes[second].restarted) == (cluster.mounts(first), [])


async def test_it_stops_at_the_first_that_fails(cluster: Cluster) -> None:
    """Issue 4: what was replaced stays so; the rest is not tried."""
    first, second = sorted(cluster.nodes)
    cluster.nodes[first].refusals[cluster.mounts(first)[0]] = DriverError("its image is wrong")
    code, lines, told = await cluster.run("upgrade", "--volume", f"a-{cluster.mark}")
    assert (code, len(lines), cluster.nodes[second].restarted) == (1, 1, [])
    assert "its image is wrong" in lines[0]
    assert "1 of 2 not tried" in told


async def test_another_drivers_client_is_left_alone(cluster: Cluster) -> None:
    """It can't hand over, and is no reason to stop."""
    first, second = sorted(cluster.nodes)
    cluster.nodes[first].refusals[cluster.mounts(first)[0]] = InUse("was made by another driver")
    code, lines, _ = await cluster.run("upgrade", "--volume", f"a-{cluster.mark}", "--json")
    errors = [json.loads(line)["error"] for line in lines]
    assert (code, "another driver" in errors[0], errors[1]) == (0, True, "")
    assert cluster.nodes[second].restarted == [cluster.mounts(second)[0]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["upgrade"], 2, "upgrade which clients?"),
        (["upgrade", "--volume", "nobody's"], 1, "no client runs that fits"),
        (["list", "--volume", "nobody's"], 0, "no client runs"),
        ([], 2, "list|upgrade"),
    ],
)
async def test_what_it_needs_is_said(nats: NatsServer, *, arguments: list[str], code: int, words: str) -> None:
    """Never every client by mistake."""
    found, lines, told = await Cluster(nats).run(*arguments)
    assert (found, lines) == (code, [])
    assert words in told


async def test_nats_that_is_away_is_said(nats: NatsServer) -> None:
    """With the option that says where it is."""
    code, _, told = await Cluster(nats).run("list", url="nats://127.0.0.1:1")
    assert code == 1
    assert "NATS is away" in told
