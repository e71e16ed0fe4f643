"""What the services cost: memory with many mounts, and calls a second."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from shared.api.csi.v1 import IdentityStub, ProbeRequest
from shared.domain import GIB
from tests.bench import machine
from tests.bench.binding import Pairs
from tests.bench.floors import BareBind
from tests.bench.rows import Row, Tell, alternate, latency, timed
from tests.bench.setting import Setting, setting

_MOUNTS: Final = 100
_AT_ONCE: Final = 4
_CLIENT: Final = 128 << 20  # bytes that one client may need
_SMALL: Final = "buffer-size=32,cache-size=0,no-bgjob,backup-meta=0,no-usage-report"
_VOLUMES: Final = 10
_AGAIN: Final = 20
_MEMORY: Final[dict[str, float | None]] = {"node": 45, "mountpod": 60, "controller": 60, "nats": None}
"""Each process, and how many MiB it may have."""
_IN_FLIGHT: Final = 32
_WINDOW: Final = 1.0  # seconds
_WINDOWS: Final = 5
_CALLS: Final = 200


async def rpc(tell: Tell) -> list[Row]:
    """Probe of the node service: one at a time, and calls a second with 32 in flight."""
    async with setting("nats", "node") as place:
        channel = place.driver.channel("node")
        try:
            node = IdentityStub(channel)
            single = await alternate(
                _CALLS, lambda _: timed(node.probe(ProbeRequest())), lambda _: timed(place.bare.probe(ProbeRequest()))
            )
            many = await alternate(_WINDOWS, lambda _: _rate(node), lambda _: _rate(place.bare), tell=tell)
        finally:
            channel.close()
    return [
        latency("rpc-p50", *single, what="Probe, one at a time"),
        Row(name="rpc-rate", what=f"Probe, {_IN_FLIGHT} in flight", unit="/s", samples=many[0], floors=many[1]),
    ]


async def _rate(stub: IdentityStub) -> float:
    """Calls a second."""
    count, began = 0, time.perf_counter()

    async def ask() -> None:
        nonlocal count
        while time.perf_counter() - began < _WINDOW:
            await stub.probe(ProbeRequest())
            count += 1

    await asyncio.gather(*(ask() for _ in range(_IN_FLIGHT)))
    return count / (time.perf_counter() - began)


async def many(tell: Tell) -> list[Row]:
    """PSS of each process beside 100 clients with 200 targets, of one client; a publish and an unpublish there."""
    clients = min(_MOUNTS, machine.available() // _CLIENT)
    async with setting() as place:
        rest = {name: _pss(place, name) for name in _MEMORY}
        volumes = [await place.csi.create(f"bench-{number}", size=GIB) for number in range(_VOLUMES)]
        targets = [(f"bench-{one % clients}", f"{one}") for one in range(2 * _MOUNTS)]
        await _spread(lambda volume, pod: _publish(place, volume, pod), targets, tell=tell)
        full = {name: _pss(place, name) for name in _MEMORY}
        client = sum(machine.pss(pid) for pid in place.driver.clients()) / clients
        bare = BareBind(server=place.bare, base=place.driver.base, source=str(place.target("0", "bench-0")))
        again = Pairs(place=place, bare=bare, volume="bench-0", options=_SMALL)
        bound, unbound = await again.published(_AGAIN, tell=tell), await again.unpublished(_AGAIN, tell=tell)
        for volume in volumes:
            await place.csi.delete(volume.volume_id)
        await _spread(lambda volume, pod: place.unpublish(volume, place.target(pod, volume)), targets, tell=tell)
        await place.no_clients()
    what = f"with {clients} clients and {2 * _MOUNTS} targets"
    return [
        latency("warm-many", *bound, what=f"publish, the client runs, {what}", times=6),
        latency("unpublish-many", *unbound, what=f"unpublish, the client goes on, {what}", times=6),
        *(
            Row(
                name=f"memory-{name}",
                what=f"PSS of {name} {what}; {rest[name]:.0f} MiB at its start",
                unit="MiB",
                samples=[full[name]],
                most=most,
            )
            for name, most in _MEMORY.items()
        ),
        Row(name="memory-client", what=f"PSS of one of {clients} idle clients", unit="MiB", samples=[client]),
    ]


async def _publish(place: Setting, volume: str, pod: str) -> float:
    return await place.publish(volume, place.target(pod, volume), options=_SMALL)


def _pss(place: Setting, name: str) -> float:
    return machine.pss(place.driver.running[name].pid)


async def _spread(work: Callable[[str, str], Awaitable[object]], targets: list[tuple[str, str]], *, tell: Tell) -> None:
    """Do it for each (volume, pod), a few at once."""
    rest, done = iter(targets), 0

    async def some() -> None:
        nonlocal done
        for volume, pod in rest:
            await work(volume, pod)
            done += 1
            tell(f"{done}/{len(targets)} targets")

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
