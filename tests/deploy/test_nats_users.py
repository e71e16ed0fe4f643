"""Who may say and hear what on the bus, by deploy/base/nats.conf on a real nats-server."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client

from shared import events
from shared.api.juicefs.v1 import (
    CloseReply,
    CloseRequest,
    EnsureReply,
    EnsureRequest,
    Event,
    RestartReply,
    RestartRequest,
    ServiceStarted,
)
from shared.bus import Bus
from shared.errors import NotReady
from shared.nats_auth import SERVICES, passwords
from tests.nats_server import NatsServer, nats_server
from tests.waiting import until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "base" / "nats.conf"
PASSWORDS = passwords()
NODE = "ip-10-0-0-1.eu-central-1.compute.internal"
ENSURE, RESTART = f"juicefs.rpc.mountpod.{NODE}.Ensure", f"juicefs.rpc.mountpod.{NODE}.Restart"
CLOSE = f"juicefs.rpc.node.{NODE}.Close"
STREAM = f"$JS.API.STREAM.%s.{events.STREAM}"


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    """A server with the configuration that is shipped, but for its addresses and its store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        monitor = str(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        for service, password in PASSWORDS.items():
            patch.setenv(f"PASSWORD_{service.upper()}", password)
        with nats_server("-c", str(CONFIGURATION), "-m", monitor) as server:
            yield server


def url(server: NatsServer, user: str) -> str:
    return server.url.replace("//", f"//{user}:{PASSWORDS[user]}@")


@asynccontextmanager
async def buses(server: NatsServer, *services: str) -> AsyncIterator[list[Bus]]:
    """The bus of each service; `prepare` is what it serves and hears."""
    async with AsyncExitStack() as stack:
        found = []
        for service in services:
            bus = Bus(url=url(server, service), service=service, node=NODE if service == "node" else "")
            task = asyncio.create_task(bus.run())
            stack.push_async_callback(asyncio.wait, {task})
            stack.callback(task.cancel)
            found.append(bus)
        await until(lambda: all(bus.is_connected for bus in found))
        yield found


async def ensure(request: EnsureRequest) -> EnsureReply:
    return EnsureReply(mount=request.volume_id)


async def test_a_node_asks_for_a_client(guarded: NatsServer) -> None:
    """Whatever the machine is called."""
    async with buses(guarded, "node", "mountpod") as (node, mountpod):
        mountpod.serve("juicefs.rpc.mountpod.>", EnsureRequest, ensure, queue="mountpod")
        async with asyncio.timeout(5):
            reply = await _until_answered(node, ENSURE)

    assert reply.mount == "v1"


async def test_mountpod_asks_a_node(guarded: NatsServer) -> None:
    async def close(_: CloseRequest) -> CloseReply:
        return CloseReply(in_use=True)

    async with buses(guarded, "node", "mountpod") as (node, mountpod):
        node.serve(CLOSE, CloseRequest, close)
        await _served(guarded, "mountpod", CLOSE)
        reply = await mountpod.request(CLOSE, CloseRequest(mount="m"), CloseReply, timeout=5)

    assert reply.in_use


async def test_a_node_restarts_nothing(guarded: NatsServer) -> None:
    """Ensure is all that a node may ask of mountpod."""
    heard = []

    async def restart(request: RestartRequest) -> RestartReply:
        heard.append(request)
        return RestartReply()

    async with buses(guarded, "node", "mountpod") as (node, mountpod):
        mountpod.serve(RESTART, RestartRequest, restart)
        await _served(guarded, "mountpod", RESTART)
        with pytest.raises(NotReady, match="did not answer"):
            await node.request(RESTART, RestartRequest(mount="m"), RestartReply, timeout=0.5)

    assert len(heard) == 1  # by _served


@pytest.mark.parametrize(("speaker", "listener"), [("node", "mountpod"), ("mountpod", "node")])
async def test_events_reach_who_acts_on_them(guarded: NatsServer, speaker: str, listener: str) -> None:
    """TargetBound and its like one way, MountFailed and its like the other."""
    heard: list[Event] = []
    async with buses(guarded, speaker, listener) as (saying, hearing):
        hearing.on_event(f"juicefs.event.{speaker}.>", heard.append)
        async with asyncio.timeout(5):
            while not heard:
                saying.say(ServiceStarted(version="1"))
                await asyncio.wait({asyncio.create_task(until(lambda: heard, within=0.2))})

    assert heard[0].service == speaker


async def test_the_tap_shows_the_past(guarded: NatsServer) -> None:
    """Of every service; what a node says is kept too, in the stream that others keep."""
    async with buses(guarded, "controller", "mountpod", "node") as all_of_them:
        await until(lambda: _has_stream(guarded))
        for bus in all_of_them:
            bus.say(ServiceStarted(version="1"))
        await until(lambda: not any(bus.unsent for bus in all_of_them))
    tap = await asyncio.create_subprocess_exec(
        Path(sys.prefix) / "bin" / "juicefs-csi-tap",
        *("--since", "1m", "--no-follow"),
        env={"JUICEFS_CSI_NATS": url(guarded, "tap")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(tap.communicate(), 20)

    assert complaints == b""
    assert all(place in printed.decode() for place in ("controller", "mountpod", NODE))


Act = tuple[str, str, str]
"""Who, publish or subscribe, and where."""

ALLOWED: list[Act] = [
    ("controller", "publish", "juicefs.event.controller._.VolumeCreated"),
    ("controller", "publish", STREAM % "CREATE"),
    ("mountpod", "publish", "juicefs.event.mountpod._.ClientStarted"),
    ("mountpod", "publish", STREAM % "UPDATE"),
    ("mountpod", "publish", RESTART),
    ("mountpod", "subscribe", "juicefs.rpc.mountpod.>"),
    ("node", "publish", "juicefs.rpc.mountpod.n1.Ensure"),
    ("node", "publish", "juicefs.event.node.n1.TargetBound"),
    ("tap", "subscribe", events.EVERYTHING),
]
FORBIDDEN: list[Act] = [
    *((user, "subscribe", ">") for user in SERVICES),
    *((user, "subscribe", "_INBOX.>") for user in SERVICES),
    *((user, "subscribe", "$SYS.>") for user in SERVICES),
    *((user, "subscribe", "$JS.API.>") for user in SERVICES),
    *((user, "publish", STREAM % "DELETE") for user in SERVICES),
    *((user, "publish", STREAM % "PURGE") for user in SERVICES),
    *((user, "publish", "$JS.API.STREAM.CREATE.ANOTHER") for user in SERVICES),
    *((user, "subscribe", "juicefs.rpc.mountpod.>") for user in ("controller", "node", "tap")),
    *((user, "subscribe", "juicefs.rpc.node.>") for user in ("controller", "mountpod", "tap")),
    *((user, "publish", CLOSE) for user in ("controller", "node", "tap")),
    *((user, "publish", ENSURE) for user in ("controller", "tap")),
    *((user, "publish", RESTART) for user in ("controller", "node", "tap")),
    *((user, "publish", "juicefs.event.node.n1.TargetBound") for user in ("controller", "mountpod", "tap")),
    *((user, "publish", "juicefs.event.mountpod._.MountFailed") for user in ("controller", "node", "tap")),
    *((user, "publish", "_INBOX.mountpod.x") for user in ("controller", "node", "tap")),
    *((user, "publish", STREAM % "UPDATE") for user in ("node", "tap")),
    ("node", "publish", STREAM % "CREATE"),
    ("node", "subscribe", "juicefs.event.node.>"),
    ("node", "publish", f"$JS.API.CONSUMER.CREATE.{events.STREAM}.x"),
]


@pytest.mark.parametrize("act", ALLOWED, ids=" ".join)
async def test_allowed(guarded: NatsServer, act: Act) -> None:
    assert await complaints(guarded, act) == []


@pytest.mark.parametrize("act", FORBIDDEN, ids=" ".join)
async def test_forbidden(guarded: NatsServer, act: Act) -> None:
    said = await complaints(guarded, act)

    assert len(said) == 1
    assert "permissions violation" in said[0].lower()


@pytest.mark.parametrize("wrong", ["", "node@", "node:wrong@", "another:wrong@"])
async def test_nobody_enters_without_a_password(guarded: NatsServer, wrong: str) -> None:
    bus = Bus(url=guarded.url.replace("//", f"//{wrong}"), service="node", node="n1")
    task = asyncio.create_task(bus.run())
    await until(lambda: "uthorization" in bus._connection.cause)
    task.cancel()
    await asyncio.wait({task})


async def complaints(server: NatsServer, act: Act) -> list[str]:
    """What the server says to it."""
    user, verb, subject = act
    said: list[str] = []

    async def hear(error: Exception) -> None:
        said.append(str(error))

    client = Client()
    await client.connect(url(server, user), error_cb=hear, inbox_prefix=f"_INBOX.{user}", allow_reconnect=False)
    try:
        await (client.publish(subject, b"") if verb == "publish" else client.subscribe(subject))
        for _ in range(2):  # nats-py's first ping may overtake what was said before it
            await client.flush(5)
    finally:
        await client.close()
    return said


async def _until_answered(bus: Bus, subject: str) -> EnsureReply:
    """The other side's subscription may still be on its way."""
    while True:
        try:
            return await bus.request(subject, EnsureRequest(volume_id="v1"), EnsureReply, timeout=1)
        except NotReady:
            await asyncio.sleep(0)


async def _served(server: NatsServer, user: str, subject: str) -> None:
    """Wait until somebody answers there."""
    client = Client()
    await client.connect(url(server, user), inbox_prefix=f"_INBOX.{user}", allow_reconnect=False)
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    await client.request(subject, b"", timeout=1)
                except nats.errors.NoRespondersError:
                    await asyncio.sleep(0)
                else:
                    return
    finally:
        await client.close()


def _has_stream(server: NatsServer) -> bool:
    return any(path.name == events.STREAM for path in server._root.rglob(events.STREAM))
