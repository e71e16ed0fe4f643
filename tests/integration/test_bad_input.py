"""Bad input over the wire: a status as the CSI spec says, no effect, and the service goes on."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import betterproto2
import pytest
import pytest_asyncio
from grpclib.client import Channel
from grpclib.const import Status

from demo.driver import Driver, local_driver
from shared.api.csi.v1 import IdentityStub, ProbeRequest
from tests.integration import hostile
from tests.integration.local import Local, local
from tests.integration.rpcs import GIB, RPCS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

AT_ONCE = 6
FUZZED = 2000
ALLOWED = {
    Status.OK,
    Status.INVALID_ARGUMENT,
    Status.NOT_FOUND,
    Status.ALREADY_EXISTS,
    Status.OUT_OF_RANGE,
    Status.FAILED_PRECONDITION,
    Status.UNAVAILABLE,
}
"""What the spec has for these RPCs; UNKNOWN, INTERNAL and DEADLINE_EXCEEDED are no answers to bad input."""

Answer = tuple[Status, str]
Answers = dict[str, Answer]


@asynccontextmanager
async def raw(driver: Driver, service: str) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
    """Sends bytes to a service, which afterwards goes on as if nothing had been."""
    channel = Channel(path=str(driver.socket(service)), codec=hostile.Raw())
    process = driver.running[service]
    try:
        yield partial(hostile.send, channel)
    finally:
        channel.close()
    assert process.returncode is None, driver.tail(service)
    with closing(driver.channel(service)) as plain:
        assert (await IdentityStub(plain).probe(ProbeRequest(), timeout=5)).ready


async def sweep(driver: Driver, rpc: str, accepted: set[str]) -> Answers:
    """What each bad request is answered with; what was accepted is undone, and its volume's name kept."""
    payloads, gate = hostile.texts(driver.base / "owned"), asyncio.Semaphore(AT_ONCE)
    make, undo = RPCS[rpc].make, RPCS[rpc].undo

    def requests(name: str) -> Iterator[tuple[str, betterproto2.Message]]:
        return hostile.variants(make(driver, name), payloads)

    async with raw(driver, rpc.partition("/")[0].lower()) as send:

        async def ask(rpc: str, request: betterproto2.Message) -> Answer:
            while (answer := await send(rpc, hostile.frame(bytes(request))))[0] is Status.ABORTED:
                await asyncio.sleep(0.1)  # as the spec wants it: another sweep works on a volume of this name
            return answer

        async def one(place: int) -> tuple[str, Answer]:
            what, request = next(islice(requests(f"bad-{place}"), place, None))
            async with gate:
                answer = await ask(rpc, request)
                if answer[0] is not Status.INVALID_ARGUMENT:
                    accepted.add(f"bad-{place}")
                if undo is not None and answer[0] is Status.OK:
                    assert await ask(*undo(request)) == (Status.OK, ""), what
            return what, answer

        names = [what for what, _ in requests("")]
        slow_first = sorted(range(len(names)), key=lambda place: "metaurl" not in names[place])
        return dict(await asyncio.gather(*map(one, slow_first)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What all bad requests were answered with, by RPC, and what lay around before and after."""

    answers: dict[str, Answers]
    before: list[list[Path]]
    after: list[list[Path]]
    is_owned: bool
    accepted: set[str]


async def lying_around(machine: Local) -> list[list[Path]]:
    """What is in the file system's root, where targets go, and where the services were started."""
    directories = machine.target("kept", "whole"), machine.driver.pods, Path.cwd()
    return await asyncio.to_thread(lambda: [sorted(directory.iterdir()) for directory in directories])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def swept() -> AsyncIterator[Swept]:
    async with local() as machine:
        await machine.csi.publish("whole", machine.target("kept", "whole"))
        await machine.csi.create("kept", size=GIB)
        before = await lying_around(machine)
        accepted: set[str] = set()
        answers = await asyncio.gather(*(sweep(machine.driver, rpc, accepted) for rpc in RPCS))
        yield Swept(
            answers=dict(zip(RPCS, answers, strict=True)),
            before=before,
            after=await lying_around(machine),
            is_owned=(machine.driver.base / "owned").exists(),
            accepted=accepted,
        )


@pytest.mark.parametrize("rpc", RPCS)
async def test_each_field_in_turn_gets_a_status_of_the_spec(swept: Swept, rpc: str) -> None:
    """Issue 3, bad input: missing, empty, oversized, with `..`, NUL, newline, quotes, `$()`, backticks."""
    assert {what: answer for what, answer in swept.answers[rpc].items() if answer[0] not in ALLOWED} == {}


@pytest.mark.parametrize("rpc", RPCS)
async def test_what_can_never_be_right_is_an_invalid_argument(swept: Swept, rpc: str) -> None:
    """CSI spec: a required field that is missing, or one that is malformed."""
    answers, pattern = swept.answers[rpc], RPCS[rpc].refused
    refused = {what: status for what, (status, _) in answers.items() if re.fullmatch(pattern, what)}
    assert len(refused) > 5
    assert {what: status for what, status in refused.items() if status is not Status.INVALID_ARGUMENT} == {}


async def test_bad_input_is_never_executed(swept: Swept) -> None:
    """Promise 21: refused or used literally."""
    assert not swept.is_owned


async def test_bad_input_leaves_nothing_behind(swept: Swept) -> None:
    """But for the directories of what was not refused: an accepted subPath, a volume that came and went meanwhile."""
    literal = {text.strip("/").partition("/")[0] for text in [*hostile.texts(Path("/tmp")).values(), "shared"]}
    (root, *others), (root_after, *others_after) = swept.before, swept.after
    assert others_after == others
    assert {path.name for path in set(root_after) ^ set(root)} <= literal | swept.accepted


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone() -> AsyncIterator[Driver]:
    """Both CSI services, without NATS and mountpod: what gets through is answered at once, and starts nothing."""
    async with local_driver("controller", "node") as driver:
        yield driver


def unreachable(request: Any) -> bytes:
    """A valid request whose file system is never there, and never made."""
    if hasattr(request, "secrets"):
        request.secrets = request.secrets | {"metaurl": "postgres://user@127.0.0.1:1/db?sslmode=disable"}
    return bytes(request)


@pytest.mark.parametrize("service", ["controller", "node"])
async def test_fuzzed_requests_are_answered(alone: Driver, service: str) -> None:
    """Promise 24: whatever the bytes are, there is a status, and the service's uptime does not change."""
    rpcs = [rpc for rpc in RPCS if rpc.lower().startswith(service)]
    seeds = [unreachable(RPCS[rpc].make(alone, "fuzzed")) for rpc in rpcs]
    bodies = hostile.mutations(seeds, count=FUZZED, seed=1)
    gate = asyncio.Semaphore(4 * AT_ONCE)
    async with raw(alone, service) as send:

        async def one(number: int, body: bytes) -> Status:
            async with gate:
                return (await send(rpcs[number % len(rpcs)], hostile.frame(body), timeout=5))[0]

        answers = await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))
    # Most are for the same volume or target; and some metadata engine that comes of it may be silent.
    assert set(answers) <= ALLOWED | {Status.ABORTED, Status.DEADLINE_EXCEEDED}
    assert answers.count(Status.INVALID_ARGUMENT) > FUZZED / 2
    assert list(alone.pods.iterdir()) == []


@pytest.mark.parametrize("service", ["controller", "node"])
async def test_broken_frames_are_survived(alone: Driver, service: str) -> None:
    """Cut off, longer or shorter than they say, compressed, none at all: the call fails, and no other one."""
    rpc = next(rpc for rpc in RPCS if rpc.lower().startswith(service))
    whole = hostile.frame(bytes(RPCS[rpc].make(alone, "frame")))
    frames = [b"", whole[:3], whole[:5], whole[:-1], b"\xff" * 5 + whole, b"\1" + whole[1:], whole[:5] + b"\xff" * 5]
    async with raw(alone, service) as send:
        for broken in frames:
            assert (await send(rpc, broken))[0] is not Status.OK


@pytest.mark.parametrize("service", ["controller", "node"])
async def test_noise_on_the_socket_is_survived(alone: Driver, service: str) -> None:
    """What is no HTTP/2, or stops being it."""
    noise = [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096, b"\0" * 4096]
    async with raw(alone, service):
        for one in noise:
            _, writer = await asyncio.open_unix_connection(str(alone.socket(service)))
            with closing(writer):
                writer.write(one)
                await writer.drain()
