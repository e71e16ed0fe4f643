"""juicefs-csi-tap as a user runs it, on a real nats-server."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from shared.api.juicefs.v1 import MountFailed, MountIdle, TargetBound, VolumeCreated
from shared.bus import Bus
from tests.nats_server import NatsServer
from tests.waiting import until

TAP = Path(sys.prefix) / "bin" / "juicefs-csi-tap"


@asynccontextmanager
async def saying(nats: NatsServer) -> AsyncIterator[Bus]:
    """A service on a node of its own."""
    bus = Bus(url=nats.url, service="mountpod", node=f"n-{uuid4()}")
    task = asyncio.create_task(bus.run())
    try:
        await until(lambda: bus.is_connected)
        yield bus
    finally:
        task.cancel()
        await asyncio.wait({task})


async def past(nats: NatsServer, *arguments: str, **environment: str) -> list[str]:
    """What the tap prints of the last minute."""
    tap = await start(nats, "--since", "1m", "--no-follow", *arguments, **environment)
    output, _ = await asyncio.wait_for(tap.communicate(), 10)
    assert tap.returncode == 0
    return output.decode().splitlines()


async def start(nats: NatsServer, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        TAP,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "JUICEFS_CSI_NATS_URL": nats.url, **environment},
    )


@asynccontextmanager
async def following(nats: NatsServer, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    tap = await start(nats, *arguments)
    try:
        yield tap
    finally:
        if tap.returncode is None:
            tap.kill()
        await tap.communicate()


async def next_line(tap: asyncio.subprocess.Process) -> str:
    assert tap.stdout is not None
    return (await asyncio.wait_for(tap.stdout.readline(), 10)).decode()


async def say_until_seen(bus: Bus, tap: asyncio.subprocess.Process) -> str:
    """The tap may connect after the first of these events."""
    line = asyncio.create_task(next_line(tap))
    while not line.done():
        bus.say(MountIdle(), volume_id="v1")
        await asyncio.wait({line}, timeout=0.1)
    return line.result()


async def test_events_are_shown_as_they_are_said(nats: NatsServer) -> None:
    """One line with node, volume, kind and facts."""
    async with saying(nats) as bus, following(nats, "--node", "n-none", "--node", bus.node) as tap:
        assert "MountIdle" in await say_until_seen(bus, tap)
        bus.say(TargetBound(target="/pods/a b", read_only=True), volume_id="pvc-0123456789-abc")
        while "MountIdle" in (line := await next_line(tap)):
            pass

    assert line.split()[1:4] == [bus.node, "pvc-01234567", "TargetBound"]
    assert line.rstrip().endswith('target="/pods/a b" read_only')


async def test_the_past_is_replayed(nats: NatsServer) -> None:
    """--since shows what was said before, in order; --no-follow ends there."""
    async with saying(nats) as bus:
        for number in range(5):
            bus.say(MountIdle(), volume_id=f"v{number}")
        await until(lambda: not bus.unsent)

    assert [line.split()[2] for line in await past(nats, "--node", bus.node)] == [f"v{number}" for number in range(5)]


async def test_an_empty_past_ends(nats: NatsServer) -> None:
    """--no-follow does not wait for an event that never comes."""
    tap = await start(nats, "--since", "2100-01-01T00:00", "--no-follow")
    output, _ = await asyncio.wait_for(tap.communicate(), 10)

    assert (tap.returncode, output) == (0, b"")


async def test_filters(nats: NatsServer) -> None:
    """By node, volume and kind, all of which must hold."""
    async with saying(nats) as bus:
        bus.say(MountIdle(), volume_id="pvc-1")
        bus.say(MountIdle(), volume_id="pvc-2")
        bus.say(VolumeCreated(capacity_bytes=2 << 30), volume_id="pvc-2")
        await until(lambda: not bus.unsent)

    lines = await past(nats, "--node", bus.node, "--volume", "pvc-2", "--kind", "volumecreated")
    assert [line.split()[2:] for line in lines] == [["pvc-2", "VolumeCreated", "capacity=2GiB"]]


async def test_json(nats: NatsServer) -> None:
    """One object a line with stable keys and the time in UTC."""
    async with saying(nats) as bus:
        bus.say(MountFailed(reason="META_AUTH", message="access denied"), volume_id="v1", mount="v1-abc")
        await until(lambda: not bus.unsent)

    (line,) = await past(nats, "--json", "--node", bus.node)
    found = json.loads(line)
    said = datetime.fromisoformat(found.pop("time"))
    assert (said.tzinfo, abs(said - datetime.now(UTC)).total_seconds() < 60) == (UTC, True)
    facts = {"reason": "META_AUTH", "message": "access denied"}
    place = {"service": "mountpod", "node": bus.node, "volume_id": "v1", "mount": "v1-abc", "request_id": ""}
    assert found == {**place, "kind": "MountFailed", "facts": facts}


@pytest.mark.parametrize(("setting", "has_colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
async def test_colours(nats: NatsServer, setting: dict[str, str], has_colour: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """On a terminal, unless NO_COLOR is set."""
    async with saying(nats) as bus:
        bus.say(MountFailed(reason="META_AUTH"), volume_id="v1")
        await until(lambda: not bus.unsent)
    reader, writer = pty.openpty()
    arguments = ("--since", "1m", "--no-follow", "--node", bus.node)
    environment = {**os.environ, "JUICEFS_CSI_NATS_URL": nats.url, **setting}
    tap = await asyncio.create_subprocess_exec(TAP, *arguments, stdout=writer, env=environment)
    os.close(writer)
    try:
        assert await asyncio.wait_for(tap.wait(), 10) == 0
        assert (b"\x1b[31mMountFailed" in os.read(reader, 4096)) is has_colour
    finally:
        os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_quietly(nats: NatsServer, number: signal.Signals) -> None:
    """Ctrl-C is how one leaves: code 0, nothing printed, at once."""
    async with saying(nats) as bus, following(nats, "--node", bus.node) as tap:
        await say_until_seen(bus, tap)
        tap.send_signal(number)
        _, errors = await asyncio.wait_for(tap.communicate(), 2)

    assert (tap.returncode, errors) == (0, b"")


async def test_a_reader_that_leaves_ends_it(nats: NatsServer) -> None:
    """As `juicefs-csi-tap | head -1` does."""
    async with saying(nats) as bus:
        reader, writer = os.pipe()
        environment = {**os.environ, "JUICEFS_CSI_NATS_URL": nats.url}
        tap = await asyncio.create_subprocess_exec(
            TAP, "--since", "1m", stdout=writer, stderr=asyncio.subprocess.PIPE, env=environment
        )
        os.close(writer)
        os.close(reader)
        ended = asyncio.create_task(tap.communicate())
        while not ended.done():
            bus.say(MountIdle(), volume_id="v1")
            await asyncio.wait({ended}, timeout=0.1)

    assert (tap.returncode, ended.result()[1]) == (0, b"")


async def test_nats_may_come_later(nats: NatsServer) -> None:
    """One line says what it waits for; events said meanwhile are shown when it is there; also after a restart."""
    nats.stop()
    try:
        async with saying_later(nats) as bus, following(nats, "--since", "1m", "--node", bus.node) as tap:
            assert tap.stderr is not None
            assert b"waiting for NATS at nats://127.0.0.1" in await asyncio.wait_for(tap.stderr.readline(), 10)
            for volume in ("first", "second"):
                bus.say(MountIdle(), volume_id=volume)
                nats.start()
                assert volume in await next_line(tap)
                nats.stop()
    finally:
        nats.start()


@asynccontextmanager
async def saying_later(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = Bus(url=nats.url, service="mountpod", node=f"n-{uuid4()}")
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "TargetBond"], "did you mean TargetBound?"),
        (["--since", "yesterday"], "give 10m, 1h30m, or a time"),
        (["--nats", "nats://driver:hunter2@127.0.0.1:1"], "NATS_PASSWORD_FILE"),
        (["--nats", "nats://"], "must be like nats://host:port"),
    ],
)
async def test_wrong_arguments(nats: NatsServer, arguments: list[str], words: str) -> None:
    """A line that says what to write instead, and never a password."""
    tap = await start(nats, *arguments)
    _, errors = await asyncio.wait_for(tap.communicate(), 10)

    assert tap.returncode in {1, 2}
    assert words in errors.decode()
    assert b"hunter2" not in errors
