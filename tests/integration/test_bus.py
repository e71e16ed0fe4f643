"""The bus while NATS comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import nats as nats_py
import pytest
from nats.js.api import StreamInfo

from shared import events
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, Event, MountIdle
from shared.bus import Bus
from shared.errors import NotReady
from shared.metrics import Metrics
from tests.nats_server import NatsServer, nats_server
from tests.waiting import until


@pytest.fixture
def fickle(nats: NatsServer) -> Iterator[NatsServer]:
    """A server that a test may stop."""
    yield nats
    nats.start()


@asynccontextmanager
async def running(*buses: Bus) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def node_bus(server: NatsServer, *, metrics: Metrics | None = None) -> Bus:
    return Bus(url=server.url, service="mountpod", node=f"n-{uuid4()}", metrics=metrics)


async def stored(server: NatsServer, node: str) -> list[str]:
    """Volumes of the events that the stream has of this node."""
    async with await nats_py.connect(server.url) as client:
        streams = client.jetstream()
        found = await streams.pull_subscribe(f"juicefs.event.mountpod.{node}.>", stream=events.STREAM)
        volumes: list[str] = []
        while count := (await found.consumer_info()).num_pending:
            volumes += [Event.parse(message.data).volume_id for message in await found.fetch(count, timeout=5)]
        return volumes


async def stream_info(server: NatsServer) -> StreamInfo:
    async with await nats_py.connect(server.url) as client:
        return await client.jetstream().stream_info(events.STREAM)


async def test_the_stream_is_bounded(nats: NatsServer) -> None:
    """A day and 64 MiB of events, on disk, the oldest go first."""
    bus = node_bus(nats)
    async with running(bus):
        bus.say(MountIdle(), volume_id="v1")
        await until(lambda: not bus.unsent)
        config = (await stream_info(nats)).config

    assert (config.max_age, config.max_bytes, config.discard, config.storage) == (24 * 3600, 64 << 20, "old", "file")


async def test_a_stream_with_other_limits_is_brought_up_to_date(nats: NatsServer) -> None:
    """As after an update of the driver."""
    async with await nats_py.connect(nats.url) as client:
        with suppress(nats_py.js.errors.NotFoundError):
            await client.jetstream().delete_stream(events.STREAM)
        await client.jetstream().add_stream(name=events.STREAM, subjects=[events.EVERYTHING], max_bytes=1 << 20)

    bus = node_bus(nats)
    async with running(bus):
        bus.say(MountIdle(), volume_id="v1")
        await until(lambda: not bus.unsent)

    assert (await stream_info(nats)).config.max_bytes == 64 << 20


async def test_what_is_said_before_nats_starts_is_kept(fickle: NatsServer) -> None:
    """A service starts without NATS, and tells its events when NATS is there, in order."""
    fickle.stop()
    bus = node_bus(fickle)
    async with running(bus):
        for number in range(150):
            bus.say(MountIdle(), volume_id=f"v{number}")
        fickle.start()
        await until(lambda: not bus.unsent)

    assert await stored(fickle, bus.node) == [f"v{number}" for number in range(150)]


@pytest.mark.parametrize("is_empty", [False, True])
async def test_what_is_said_while_nats_is_away_is_kept(fickle: NatsServer, is_empty: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Also by a server that comes back with an empty disk."""
    bus = node_bus(fickle)
    async with running(bus):
        await until(lambda: bus.is_connected)
        fickle.stop()
        await until(lambda: not bus.is_connected)
        bus.say(MountIdle(), volume_id="meanwhile")
        fickle.start_empty() if is_empty else fickle.start()
        await until(lambda: not bus.unsent)

    assert await stored(fickle, bus.node) == ["meanwhile"]


async def test_no_event_is_lost_when_nats_dies(fickle: NatsServer) -> None:
    """Events said around the server's death arrive, and none twice."""
    bus = node_bus(fickle)
    async with running(bus):
        await until(lambda: bus.is_connected)
        for number in range(400):
            bus.say(MountIdle(), volume_id=f"v{number}")
            if number == 200:
                await until(lambda: bus.unsent < 200)
                fickle.stop()
        fickle.start()
        await until(lambda: not bus.unsent)

    assert await stored(fickle, bus.node) == [f"v{number}" for number in range(400)]


async def test_the_buffer_is_bounded(fickle: NatsServer) -> None:
    """The last thousand events are kept, the others counted."""
    fickle.stop()
    metrics = Metrics()
    bus = node_bus(fickle, metrics=metrics)
    async with running(bus):
        for number in range(1250):
            bus.say(MountIdle(), volume_id=f"v{number}")
        fickle.start()
        await until(lambda: not bus.unsent)

    assert metrics.registry.get_sample_value("juicefs_csi_bus_dropped_events_total") == 250
    assert await stored(fickle, bus.node) == [f"v{number}" for number in range(250, 1250)]


async def test_the_last_words_are_sent(nats: NatsServer) -> None:
    """What is said right before the end arrives."""
    bus = node_bus(nats)
    async with running(bus):
        await until(lambda: bus.is_connected)
        bus.say(MountIdle(), volume_id="last")

    assert await stored(nats, bus.node) == ["last"]


async def test_the_end_is_quick_without_nats(fickle: NatsServer) -> None:
    """Unsent events do not hold up a service that is told to stop."""
    bus = node_bus(fickle)
    task = asyncio.create_task(bus.run())
    await until(lambda: bus.is_connected)
    with fickle.silent():
        bus.say(MountIdle(), volume_id="last")
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=3)

    assert done == {task}


async def test_a_request_without_nats(fickle: NatsServer) -> None:
    """Fails at once, and names what is missing."""
    fickle.stop()
    bus = node_bus(fickle)
    async with running(bus), asyncio.timeout(1):
        with pytest.raises(NotReady, match=r"NATS is away .*mountpod can't be asked"):
            await bus.request("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest(), EnsureReply, timeout=30)


async def test_requests_after_a_restart(fickle: NatsServer) -> None:
    """What was served before is served again; the return is counted."""

    async def answer(request: EnsureRequest) -> EnsureReply:
        return EnsureReply(mount=request.volume_id)

    metrics = Metrics()
    asking, serving = node_bus(fickle), Bus(url=fickle.url, service="mountpod", node="n1", metrics=metrics)
    serving.serve("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest, answer)
    async with running(asking, serving):
        await until(lambda: asking.is_connected and serving.is_connected)
        fickle.stop()
        await until(lambda: not asking.is_connected and not serving.is_connected)
        fickle.start()
        await until(lambda: asking.is_connected and serving.is_connected)
        reply = await asking.request(
            "juicefs.rpc.mountpod.n1.Ensure", EnsureRequest(volume_id="v1"), EnsureReply, timeout=5
        )

    assert reply.mount == "v1"
    assert metrics.registry.get_sample_value("juicefs_csi_bus_reconnects_total") == 1


async def test_a_request_that_loses_nats(fickle: NatsServer) -> None:
    """The asker is told when the connection breaks, not when its patience ends."""
    asked = asyncio.Event()

    async def answer(_: EnsureRequest) -> EnsureReply:
        asked.set()
        await asyncio.sleep(30)
        return EnsureReply()

    asking, serving = node_bus(fickle), Bus(url=fickle.url, service="mountpod", node="n1")
    serving.serve("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest, answer)
    async with running(asking, serving), asyncio.timeout(10):
        await until(lambda: asking.is_connected and serving.is_connected)
        request = asyncio.create_task(
            asking.request("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest(), EnsureReply, timeout=60)
        )
        await asked.wait()
        fickle.stop()
        with pytest.raises(NotReady, match="NATS is away"):
            await request


async def test_a_silent_server_is_noticed(fickle: NatsServer) -> None:
    """A server that stops answering without closing its connections counts as away within seconds."""
    bus = node_bus(fickle)
    async with running(bus):
        await until(lambda: bus.is_connected)
        with fickle.silent():
            await until(lambda: not bus.is_connected, within=8)
        await until(lambda: bus.is_connected)


async def test_a_server_without_jetstream() -> None:
    """Events are live only; requests work; nothing fails."""
    heard: list[Event] = []
    with nats_server("--name", "plain") as plain:
        bus, listener = node_bus(plain), Bus(url=plain.url, service="mountpod")
        listener.on_event(events.EVERYTHING, heard.append)
        async with running(bus, listener):
            await until(lambda: bus.is_connected and listener.is_connected)
            bus.say(MountIdle(), volume_id="v1")
            await until(lambda: heard)


async def test_a_password() -> None:
    """User and password come from the URL, percent-encoded; the wrong one is told as the server's refusal."""
    with nats_server("--user", "driver", "--pass", "p@ss/w0rd") as guarded:
        right = Bus(url=guarded.url.replace("//", "//driver:p%40ss%2Fw0rd@"), service="mountpod")
        wrong = Bus(url=guarded.url.replace("//", "//driver:hunter2@"), service="mountpod")
        async with running(right, wrong):
            await until(lambda: right.is_connected)
            with pytest.raises(NotReady, match="Authorization Violation") as caught:
                await wrong.request("juicefs.rpc.a.b.C", EnsureRequest(), EnsureReply, timeout=1)
            assert "hunter2" not in str(caught.value)
