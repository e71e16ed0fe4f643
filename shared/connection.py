"""Connected to NATS for ever: a connection lives until it fails, and then a new one is made.

Whatever is wanted of NATS is brought up on each connection alike, so that a server that comes back empty is no special
case. nats-py's own reconnect is not used: it gives up on some errors of the server, and goes on waiting for answers
that can't come any more.
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.errors import InvalidRequest
from shared.log import leaves

T = TypeVar("T")

RETRY: Final = 0.5  # seconds
PATIENCE: Final = 4  # seconds without an answer from the server, until it counts as away
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")  # of a subject
_BEAT: Final = 2.0  # seconds between two questions whether it is there
_PREPARING: Final = 30.0  # seconds
_CLOSING: Final = 1.0  # seconds
_ENDING: Final = 2.5  # seconds for the end of what was cancelled, last words included

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where NATS is. The password is taken out of the URL, so that no error and no log line can show it."""

    servers: list[str]
    user: str | None
    password: str | None = field(repr=False)
    ca: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """`nats://user:password@host:port`, or several with commas between; the first one's user counts for all.

        `tls://host:port?ca=FILE`: who may have signed the server's certificate, instead of those the system trusts.

        Raises:
            InvalidRequest: without showing the URL.
        """
        try:
            parts = [urlsplit(one if "://" in one else f"nats://{one}") for one in url.split(",")]
            is_sound = all(part.hostname and part.port != 0 for part in parts)
        except ValueError:
            parts, is_sound = [], False
        if not is_sound:
            raise InvalidRequest("the URL of NATS must be like nats://host:port")
        user, password = parts[0].username, parts[0].password
        return cls(
            servers=[f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts],
            user=user and unquote(user),
            password=password and unquote(password),
            ca=next((ca for part in parts for ca in parse_qs(part.query).get("ca", ())), None),
        )

    @property
    def trust(self) -> ssl.SSLContext | None:
        """Read anew for each connection, since certificates are replaced.

        Raises:
            OSError: there is no such file, or it holds no certificate.
        """
        is_tls = any(server.startswith("tls://") for server in self.servers)
        return ssl.create_default_context(cafile=self.ca) if is_tls else None

    @property
    def inbox(self) -> str:
        """Where answers come to. Of each user's own: so NATS can keep users from hearing each other's."""
        is_user = self.password is not None and self.user and _TOKEN.fullmatch(self.user)
        return f"_INBOX.{self.user}" if is_user else "_INBOX"

    def __str__(self) -> str:
        return ",".join(self.servers)


@dataclass(kw_only=True)
class Connection:
    """A connection to NATS, or the wish for one.

    `prepare` runs before a connection is announced (`client`), `work` as long as it lives: both await nats-py by
    `cancellable`. `away` is told the cause, once an outage.
    """

    address: Address
    name: str
    prepare: Callable[[Client], Awaitable[None]]
    work: Callable[[Client], Awaitable[None]]
    away: Callable[[str], None]
    client: Client | None = field(default=None, init=False)
    cause: str = field(default="not connected yet", init=False)
    _lost: asyncio.Future[None] | None = field(default=None, init=False)
    _is_away: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Connect for ever, until cancelled; `work` may take a second more then."""
        while True:
            try:
                await cancellable(self._live())
            except* Exception as failures:  # noqa: BLE001 - whatever ends a connection, there will be another
                self._note(failures)
            if not self._is_away:
                self._is_away = True
                self.away(self.cause)
            await asyncio.sleep(RETRY)

    async def ask(self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str]) -> Msg:
        """A request's answer; fails at once when the connection does.

        Raises:
            nats.errors.Error: NoRespondersError, TimeoutError, ConnectionClosedError among them.
        """
        client, lost = self.client, self._lost
        if client is None or lost is None:
            raise nats.errors.ConnectionClosedError
        return await cancellable(client.request(subject, payload, timeout=timeout, headers=headers), lost=lost)

    async def _live(self) -> None:
        """One connection, from its making to its end."""
        client, lost = Client(), asyncio.get_running_loop().create_future()

        async def closed() -> None:
            if not lost.done():
                lost.set_result(None)

        try:
            await self._connect(client, closed)
            async with asyncio.timeout(_PREPARING):
                await self.prepare(client)
            await cancellable(client.flush(PATIENCE))
            self.client, self._lost, self._is_away = client, lost, False
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_watch(client, lost))
                tasks.create_task(_never_ends(self.work(client)))
        finally:
            self.client = None
            await closed()
            with suppress(Exception):  # it is given up, however it goes
                async with asyncio.timeout(_CLOSING):
                    await cancellable(client.close())

    async def _connect(self, client: Client, closed: Callable[[], Awaitable[None]]) -> None:
        credentials: dict[str, Any] = {"user": self.address.user, "password": self.address.password}
        if self.address.user and self.address.password is None:
            credentials = {"token": self.address.user}
        async with asyncio.timeout(PATIENCE):
            await cancellable(
                client.connect(
                    self.address.servers,
                    name=self.name,
                    error_cb=self._hear_error,
                    closed_cb=closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    inbox_prefix=self.address.inbox,
                    tls=self.address.trust,
                    ping_interval=3600,  # _watch asks more often, and hears it when the server is silent
                    **credentials,
                )
            )

    async def _hear_error(self, error: Exception) -> None:
        self.cause = in_words(error)
        if self.client is not None and not isinstance(error, nats.errors.UnexpectedEOF):
            _log.warning("NATS complains", error=self.cause)

    def _note(self, failures: BaseExceptionGroup[Exception]) -> None:
        """Remember why; what is no failure of a connection is a fault of ours, and told with its places."""
        others, ours = failures.split((nats.errors.Error, OSError, TimeoutError))
        if ours is not None:
            _log.error("work on the bus failed", exc_info=ours)
        if others is not None and not isinstance(first := next(leaves(others)), nats.errors.NoServersError):
            self.cause = in_words(first)


async def cancellable(work: Coroutine[Any, Any, T], *, lost: asyncio.Future[None] | None = None) -> T:
    """Await work, and be sure to hear a cancellation.

    wait_for, on which nats-py stands, loses one that meets a result (Python 3.11), a TaskGroup one that meets a failure
    (up to 3.12).

    Raises:
        ConnectionClosedError: `lost` came first.
    """
    task = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {task} if lost is None else {task, lost}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise nats.errors.ConnectionClosedError
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_ENDING)
        task.cancelled() or task.exception()  # asyncio complains about one that nobody looked at


def in_words(error: BaseException) -> str:
    """Why NATS is away. These errors quote addresses and the server's words, never a password."""
    return (str(error) or type(error).__name__).removeprefix("nats: ")


async def _watch(client: Client, lost: asyncio.Future[None]) -> None:
    """Raise when the connection is gone, or the server silent."""
    while not lost.done():
        await cancellable(client.flush(PATIENCE))
        await asyncio.wait({lost}, timeout=_BEAT)
    raise nats.errors.ConnectionClosedError


async def _never_ends(work: Awaitable[None]) -> None:
    await work
    await asyncio.get_running_loop().create_future()
