"""Clients that start, and one that dies."""

import asyncio
import os
import select
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from shared.threads import in_thread
from tests.bench.rows import Row, Tell, alternate, latency
from tests.bench.setting import Setting, setting

_STARTS: Final = 8
_DEATHS: Final = 5
_TARGETS: Final = 30
_PATIENCE: Final = 30.0
_AGAIN: Final = 0.002
_STARTED: Final = 0.5
"""Seconds that a client goes on being busy after its mount is there: its end is no part of what is measured."""


async def cold(tell: Tell) -> list[Row]:
    """Publish of a volume whose client does not run; its file system is known."""
    async with setting("nats", "mountpod", "node") as place:

        async def ours(number: int) -> float:
            return await _publish_cold(place, f"bench-{number}", place.csi.secrets)

        async def floor(_: int) -> float:
            return await place.client.start(place.csi.secrets)

        mine, least = await alternate(_STARTS, ours, floor, tell=tell)
    return [latency("cold", mine, least, what="publish, the client starts", times=1.25)]


async def cold_new(tell: Tell) -> list[Row]:
    """The same of a file system that is new: it is formatted first."""
    async with setting("nats", "mountpod", "node") as place:

        async def ours(number: int) -> float:
            return await _publish_cold(place, f"bench-{number}", _new(place, f"ours-{number}"))

        async def floor(number: int) -> float:
            secrets = _new(place, f"bare-{number}")
            return await place.client.format(secrets) + await place.client.start(secrets)

        mine, least = await alternate(_STARTS, ours, floor, tell=tell)
    return [latency("cold-new", mine, least, what="publish, the file system is new", times=1.25)]


async def _publish_cold(place: Setting, volume: str, secrets: Mapping[str, str]) -> float:
    """Seconds of a publish that starts a client; afterwards it is gone."""
    target = place.target("cold", volume)
    seconds = await place.publish(volume, target, secrets=secrets)
    await asyncio.sleep(_STARTED)
    await place.unpublish(volume, target)
    await place.no_clients()
    return seconds


def _new(place: Setting, name: str) -> dict[str, str]:
    """The Secret of a file system that nobody has made yet."""
    return place.csi.secrets | {"name": name, "metaurl": f"sqlite3://{place.driver.base}/{name}.db"}


async def heal(tell: Tell) -> list[Row]:
    """A client with 30 targets is killed with -9: until every target answers again."""
    failed: list[int] = []
    async with setting("nats", "mountpod", "node") as place:

        async def ours(number: int) -> float:
            volume = f"bench-{number}"  # a client of its own each time: one that dies often is made to wait
            targets = [place.target(f"{one}", volume) for one in range(_TARGETS)]
            for target in targets:
                await place.publish(volume, target)
            seconds, errors = await _kill_and_wait(place, targets)
            failed.append(errors)
            for target in targets:
                await place.unpublish(volume, target)
            await place.no_clients()
            return seconds

        async def floor(_: int) -> float:
            return await place.client.start(place.csi.secrets)

        mine, least = await alternate(_DEATHS, ours, floor, tell=tell)
    what = f"client of {_TARGETS} targets killed: all of them usable, {sum(failed)} failed calls"
    return [latency("heal", mine, least, what=what, times=2)]


async def _kill_and_wait(place: Setting, targets: list[Path]) -> tuple[float, int]:
    """Seconds from the kill to the last target's answer, and how many calls failed until then."""
    name = place.machine.name(targets[0])
    with ExitStack() as stack:
        ended = select.poll()
        pids = place.driver.clients(name)
        for pid in pids:
            descriptor = os.pidfd_open(pid)
            stack.callback(os.close, descriptor)
            ended.register(descriptor, select.POLLIN)
        began = time.perf_counter()
        place.machine.kill_client(name)
        # Until the last thread is gone, an answer may still be the dead client's.
        await in_thread(lambda: _all(ended, len(pids)), name="deaths")
    answers = [in_thread(lambda target=target: _failures(target), name="ask") for target in targets]  # type: ignore[misc]
    errors = sum(await asyncio.gather(*answers))
    return time.perf_counter() - began, errors


def _all(ended: select.poll, count: int) -> None:
    while len(ended.poll(1)) < count:
        pass


def _failures(target: Path) -> int:
    """Ask the client until it answers; how often that failed. The kernel can answer neither call itself."""
    failures, deadline = 0, time.monotonic() + _PATIENCE
    while True:
        try:
            os.statvfs(target)
            os.listdir(target)  # noqa: PTH208 - as plain as can be
        except OSError:
            if time.monotonic() > deadline:
                raise
            failures += 1
            time.sleep(_AGAIN)
        else:
            return failures
