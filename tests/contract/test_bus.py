"""What services may rely on when they ask each other: on a real nats-server, and on the fake of the unit tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest

from shared import log
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, Event, MountIdle, TargetBound
from shared.bus import Bus
from shared.errors import BY_NAME, CommandFailed, DriverError, InvalidRequest, NotReady
from tests.fakes.bus import MemoryBus
from tests.nats_server import NatsServer, nats_server
from tests.waiting import until

SUBJECT = "juicefs.rpc.mountpod.n1.Ensure"
EMPTY = EnsureRequest()

Answer = Callable[[EnsureRequest], Awaitable[EnsureReply]]


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


class Conversation:
    """Buses on one nats-server, or in memory. `nats` is started by the first test that needs it."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._memory = MemoryBus() if request.param == "memory" else None
        self._url = "" if self._memory else request.getfixturevalue("nats").url

    def bus(self, service: str) -> Bus:
        return self._memory.beside(service=service) if self._memory else Bus(url=self._url, service=service, node="n1")

    @asynccontextmanager
    async def joined(self, bus: Bus) -> AsyncIterator[Bus]:
        """The bus runs while inside."""
        running = asyncio.create_task(bus.run() if not self._memory else asyncio.Event().wait())
        try:
            await until(lambda: bus.is_connected)
            yield bus
        finally:
            running.cancel()
            await asyncio.wait({running})

    def answering(self, answer: Answer, *, queue: str = "") -> AbstractAsyncContextManager[Bus]:
        """A mountpod service that answers Ensure."""
        bus = self.bus("mountpod")
        bus.serve(SUBJECT, EnsureRequest, answer, queue=queue)
        return self.joined(bus)


@pytest.fixture(params=["nats", "memory"])
def talk(request: pytest.FixtureRequest) -> Conversation:
    return Conversation(request)


on_nats = pytest.mark.parametrize("talk", ["nats"], indirect=True)


@pytest.fixture
async def node(talk: Conversation) -> AsyncIterator[Bus]:
    async with talk.joined(talk.bus("node")) as bus:
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


async def until_answered(bus: Bus) -> None:
    async with asyncio.timeout(5):
        while True:
            with suppress(NotReady):
                await ask(bus)
                return


async def until_nobody_answers(bus: Bus) -> None:
    """One that NATS was about to deliver when its subscription ended is lost."""
    async with asyncio.timeout(5):
        while True:
            try:
                await ask(bus, timeout=0.2)
            except NotReady as refusal:
                if "nobody answers" in str(refusal):
                    return


async def test_a_request_is_answered(talk: Conversation, node: Bus) -> None:
    """The answer is of the type that was asked for."""
    async with talk.answering(echo):
        reply = await ask(node, EnsureRequest(volume_id="v1"))

    assert reply.mount == "v1"


async def test_the_request_id_travels(talk: Conversation, node: Bus) -> None:
    """One id from the CSI call over the bus."""
    async with talk.answering(echo):
        with log.bound(request="0123456789abcdef"):
            reply = await ask(node)

    assert reply.settings_digest == "0123456789abcdef"


@pytest.mark.parametrize("word", BY_NAME.values())
async def test_an_error_is_raised_where_it_was_asked(talk: Conversation, node: Bus, word: type[DriverError]) -> None:
    """The same word with the same text, whatever characters it has."""
    async with talk.answering(raises(word("100% größer:\nread the log %41"))):
        with pytest.raises(DriverError) as caught:
            await ask(node)

    assert type(caught.value) is word
    assert str(caught.value) == "100% größer:\nread the log %41"


async def test_a_failed_command_keeps_its_reason(talk: Conversation, node: Bus) -> None:
    """CommandFailed tells its class on both sides."""
    async with talk.answering(raises(CommandFailed("refused", reason="META_UNREACHABLE"))):
        with pytest.raises(CommandFailed) as caught:
            await ask(node)

    assert caught.value.reason == "META_UNREACHABLE"


async def test_an_unexpected_exception_shows_only_its_type(talk: Conversation, node: Bus) -> None:
    """Its text may quote a secret; and the service goes on."""
    async with talk.answering(raises(ValueError("hunter2"))):
        for _ in range(2):
            with pytest.raises(DriverError, match="ValueError in mountpod") as caught:
                await ask(node)
            assert "hunter2" not in str(caught.value)


async def test_nobody_answers(node: Bus) -> None:
    """Said at once, with the name of the service that is missing."""
    async with asyncio.timeout(2):
        with pytest.raises(NotReady, match="is mountpod running"):
            await ask(node, timeout=30)


async def test_an_answer_too_late(talk: Conversation, node: Bus) -> None:
    """The asker hears NotReady in time, and the work is cut off: nobody waits for it."""
    ended = asyncio.Event()

    async def work(_: EnsureRequest) -> EnsureReply:
        try:
            return await never(_)
        finally:
            ended.set()

    async with talk.answering(work):
        with pytest.raises(NotReady, match=r"mountpod (did not answer|was not done)"):
            await ask(node, timeout=0.2)
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_payload_that_is_no_message(talk: Conversation, node: Bus) -> None:
    """Refused as a bad request, without calling the service."""

    class Broken(EnsureRequest):
        def __bytes__(self) -> bytes:
            return b"\x0a\x02\xff\xff"

    async with talk.answering(echo):
        with pytest.raises(InvalidRequest, match="no EnsureRequest"):
            await ask(node, Broken())


async def test_slow_requests_run_side_by_side(talk: Conversation, node: Bus) -> None:
    """A hundred answers that all wait for the last one."""
    together = asyncio.Barrier(100)

    async def meet(request: EnsureRequest) -> EnsureReply:
        await together.wait()
        return EnsureReply(mount=request.volume_id)

    async with talk.answering(meet):
        replies = await asyncio.gather(*(ask(node, EnsureRequest(volume_id=f"v{i}")) for i in range(100)))

    assert [reply.mount for reply in replies] == [f"v{i}" for i in range(100)]


@on_nats
async def test_a_queue_answers_once(talk: Conversation, node: Bus) -> None:
    """Of several replicas one does the work."""
    calls: list[str] = []

    async def count(request: EnsureRequest) -> EnsureReply:
        calls.append(request.volume_id)
        return EnsureReply()

    async with talk.answering(count, queue="mountpod"), talk.answering(count, queue="mountpod"):
        for number in range(20):
            await ask(node, EnsureRequest(volume_id=f"v{number}"))

    assert calls == [f"v{number}" for number in range(20)]


async def test_what_is_served_later_is_answered_too(talk: Conversation, node: Bus) -> None:
    """A service may begin to serve a subject while it is connected."""
    async with talk.joined(talk.bus("mountpod")) as bus:
        bus.serve(SUBJECT, EnsureRequest, echo)
        await until_answered(node)


async def test_what_has_ended_is_not_answered(talk: Conversation, node: Bus) -> None:
    """A service may end what it serves, and goes on with the rest."""
    bus = talk.bus("mountpod")
    end = bus.serve(SUBJECT, EnsureRequest, echo)
    bus.serve(f"{SUBJECT}d", EnsureRequest, echo)
    async with talk.joined(bus):
        await until_answered(node)
        end()
        await until_nobody_answers(node)
        assert await node.request(f"{SUBJECT}d", EMPTY, EnsureReply, timeout=5) == EnsureReply()


async def test_what_has_ended_is_not_heard(talk: Conversation, node: Bus) -> None:
    """A listener may end, beside another of the same."""
    ended: list[Event] = []
    heard: list[Event] = []
    listener = talk.bus("mountpod")
    end = listener.on_event("juicefs.event.node.n1.>", ended.append)
    listener.on_event("juicefs.event.node.n1.>", heard.append)

    end()
    async with talk.joined(listener):
        node.say(MountIdle(), volume_id="v1")
        await until(lambda: heard)

    assert ended == []


async def test_an_event_is_heard(talk: Conversation, node: Bus) -> None:
    """With who says it, of what, and in whose call."""
    heard: list[Event] = []
    listener = talk.bus("mountpod")
    listener.on_event("juicefs.event.node.n1.>", heard.append)

    async with talk.joined(listener):
        with log.bound(request="abc"):
            node.say(TargetBound(target="/t", read_only=True), volume_id="v1", mount="v1-abc")
        await until(lambda: heard)

    assert (heard[0].service, heard[0].node, heard[0].volume_id, heard[0].mount) == ("node", "n1", "v1", "v1-abc")
    assert heard[0].request_id == "abc"
    assert heard[0].target_bound == TargetBound(target="/t", read_only=True)


async def test_a_listener_that_fails_hears_the_next(talk: Conversation, node: Bus) -> None:
    """One bad event does not end the subscription."""
    heard: list[str] = []

    def hear(said: Event) -> None:
        heard.append(said.volume_id)
        raise RuntimeError

    listener = talk.bus("mountpod")
    listener.on_event("juicefs.event.node.n1.MountIdle", hear)
    async with talk.joined(listener):
        node.say(MountIdle(), volume_id="v1")
        node.say(MountIdle(), volume_id="v2")
        await until(lambda: heard == ["v1", "v2"])


@on_nats
async def test_who_stops_says_so(talk: Conversation, node: Bus) -> None:
    """A request that is being answered when the service ends is refused at once, not left to its deadline."""
    asked = asyncio.Event()

    async def work(request: EnsureRequest) -> EnsureReply:
        asked.set()
        return await never(request)

    async with talk.answering(work):
        asking = asyncio.create_task(ask(node, timeout=30))
        await asked.wait()

    with pytest.raises(NotReady, match="mountpod is stopping"):
        await asyncio.wait_for(asking, 5)
