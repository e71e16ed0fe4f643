"""What services may rely on when they ask each other, on a real nats-server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from shared import log
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, Event, MountIdle, TargetBound
from shared.bus import Bus
from shared.errors import BY_NAME, CommandFailed, DriverError, InvalidRequest, NotReady
from tests.nats_server import NatsServer, nats_server
from tests.waiting import until

SUBJECT = "juicefs.rpc.mountpod.n1.Ensure"
EMPTY = EnsureRequest()

Answer = Callable[[EnsureRequest], Awaitable[EnsureReply]]


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


@asynccontextmanager
async def running(*buses: Bus) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    try:
        await until(lambda: all(bus.is_connected for bus in buses))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
async def node(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = Bus(url=nats.url, service="node", node="n1")
    async with running(bus):
        yield bus


@asynccontextmanager
async def answering(nats: NatsServer, answer: Answer, *, queue: str = "") -> AsyncIterator[Bus]:
    """A mountpod service that answers Ensure."""
    bus = Bus(url=nats.url, service="mountpod", node="n1")
    bus.serve(SUBJECT, EnsureRequest, answer, queue=queue)
    async with running(bus):
        yield bus


async def echo(request: EnsureRequest) -> EnsureReply:
    return EnsureReply(mount=request.volume_id, settings_digest=log.request_id.get())


async def never(_: EnsureRequest) -> EnsureReply:
    never_done: asyncio.Future[EnsureReply] = asyncio.get_running_loop().create_future()
    return await never_done


def raises(error: Exception) -> Answer:
    async def refuse(_: EnsureRequest) -> EnsureReply:
        raise error

    return refuse


async def ask(bus: Bus, request: EnsureRequest = EMPTY, *, timeout: float = 5) -> EnsureReply:
    return await bus.request(SUBJECT, request, EnsureReply, timeout=timeout)


async def test_a_request_is_answered(nats: NatsServer, node: Bus) -> None:
    """The answer is of the type that was asked for."""
    async with answering(nats, echo):
        reply = await ask(node, EnsureRequest(volume_id="v1"))

    assert reply.mount == "v1"


async def test_the_request_id_travels(nats: NatsServer, node: Bus) -> None:
    """One id from the CSI call over the bus."""
    async with answering(nats, echo):
        with log.bound(request="0123456789abcdef"):
            reply = await ask(node)

    assert reply.settings_digest == "0123456789abcdef"


@pytest.mark.parametrize("word", BY_NAME.values())
async def test_an_error_is_raised_where_it_was_asked(nats: NatsServer, node: Bus, word: type[DriverError]) -> None:
    """The same word with the same text, whatever characters it has."""
    async with answering(nats, raises(word("100% größer:\nread the log %41"))):
        with pytest.raises(DriverError) as caught:
            await ask(node)

    assert type(caught.value) is word
    assert str(caught.value) == "100% größer:\nread the log %41"


async def test_a_failed_command_keeps_its_reason(nats: NatsServer, node: Bus) -> None:
    """CommandFailed tells its class on both sides."""
    async with answering(nats, raises(CommandFailed("refused", reason="META_UNREACHABLE"))):
        with pytest.raises(CommandFailed) as caught:
            await ask(node)

    assert caught.value.reason == "META_UNREACHABLE"


async def test_an_unexpected_exception_shows_only_its_type(nats: NatsServer, node: Bus) -> None:
    """Its text may quote a secret; and the service goes on."""
    async with answering(nats, raises(ValueError("hunter2"))):
        for _ in range(2):
            with pytest.raises(DriverError, match="ValueError in mountpod") as caught:
                await ask(node)
            assert "hunter2" not in str(caught.value)


async def test_nobody_answers(node: Bus) -> None:
    """Said at once, with the name of the service that is missing."""
    async with asyncio.timeout(2):
        with pytest.raises(NotReady, match="is mountpod running"):
            await ask(node, timeout=30)


async def test_an_answer_too_late(nats: NatsServer, node: Bus) -> None:
    """The asker hears NotReady in time, and the work is cut off: nobody waits for it."""
    ended = asyncio.Event()

    async def work(_: EnsureRequest) -> EnsureReply:
        try:
            return await never(_)
        finally:
            ended.set()

    async with answering(nats, work):
        with pytest.raises(NotReady, match=r"mountpod (did not answer|was not done)"):
            await ask(node, timeout=0.2)
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_payload_that_is_no_message(nats: NatsServer, node: Bus) -> None:
    """Refused as a bad request, without calling the service."""

    class Broken(EnsureRequest):
        def __bytes__(self) -> bytes:
            return b"\x0a\x02\xff\xff"

    async with answering(nats, echo):
        with pytest.raises(InvalidRequest, match="no EnsureRequest"):
            await ask(node, Broken())


async def test_slow_requests_run_side_by_side(nats: NatsServer, node: Bus) -> None:
    """A hundred answers that all wait for the last one."""
    together = asyncio.Barrier(100)

    async def meet(request: EnsureRequest) -> EnsureReply:
        await together.wait()
        return EnsureReply(mount=request.volume_id)

    async with answering(nats, meet):
        replies = await asyncio.gather(*(ask(node, EnsureRequest(volume_id=f"v{i}")) for i in range(100)))

    assert [reply.mount for reply in replies] == [f"v{i}" for i in range(100)]


async def test_a_queue_answers_once(nats: NatsServer, node: Bus) -> None:
    """Of several replicas one does the work."""
    calls: list[str] = []

    async def count(request: EnsureRequest) -> EnsureReply:
        calls.append(request.volume_id)
        return EnsureReply()

    async with answering(nats, count, queue="mountpod"), answering(nats, count, queue="mountpod"):
        for number in range(20):
            await ask(node, EnsureRequest(volume_id=f"v{number}"))

    assert calls == [f"v{number}" for number in range(20)]


async def test_what_is_served_later_is_answered_too(nats: NatsServer, node: Bus) -> None:
    """A service may begin to serve a subject while it is connected."""
    bus = Bus(url=nats.url, service="mountpod", node="n1")
    async with running(bus):
        bus.serve(SUBJECT, EnsureRequest, echo)
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await ask(node, EnsureRequest(volume_id="v1"))).mount == "v1"
                    break
                except NotReady:
                    continue


async def test_an_event_is_heard(nats: NatsServer, node: Bus) -> None:
    """With who says it, of what, and in whose call."""
    heard: list[Event] = []
    listener = Bus(url=nats.url, service="mountpod", node="n1")
    listener.on_event("juicefs.event.node.n1.>", heard.append)

    async with running(listener):
        with log.bound(request="abc"):
            node.say(TargetBound(target="/t", read_only=True), volume_id="v1", mount="v1-abc")
        await until(lambda: heard)

    assert (heard[0].service, heard[0].node, heard[0].volume_id, heard[0].mount) == ("node", "n1", "v1", "v1-abc")
    assert heard[0].request_id == "abc"
    assert heard[0].target_bound == TargetBound(target="/t", read_only=True)


async def test_a_listener_that_fails_hears_the_next(nats: NatsServer, node: Bus) -> None:
    """One bad event does not end the subscription."""
    heard: list[str] = []

    def hear(said: Event) -> None:
        heard.append(said.volume_id)
        raise RuntimeError

    listener = Bus(url=nats.url, service="mountpod", node="n1")
    listener.on_event("juicefs.event.node.n1.MountIdle", hear)
    async with running(listener):
        node.say(MountIdle(), volume_id="v1")
        node.say(MountIdle(), volume_id="v2")
        await until(lambda: heard == ["v1", "v2"])


async def test_who_stops_says_so(nats: NatsServer, node: Bus) -> None:
    """A request that is being answered when the service ends is refused at once, not left to its deadline."""
    asked = asyncio.Event()

    async def work(request: EnsureRequest) -> EnsureReply:
        asked.set()
        return await never(request)

    async with answering(nats, work):
        asking = asyncio.create_task(ask(node, timeout=30))
        await asked.wait()

    with pytest.raises(NotReady, match="mountpod is stopping"):
        await asyncio.wait_for(asking, 5)
