"""The bus: how services ask each other for something now, and tell whoever listens what has happened.

Requests are NATS request/reply without persistence: who asks waits, and tries again later. Events are published without
waiting; they are kept here while NATS is away, and by a JetStream stream once they are told.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import quote, unquote

import betterproto2
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from shared import events, log
from shared.api.juicefs.v1 import Event
from shared.connection import Address, Connection, cancellable, in_words
from shared.errors import BY_NAME, CommandFailed, DriverError, InvalidRequest, NotReady
from shared.metrics import Metrics
from shared.outbox import Outbox

R = TypeVar("R", bound=betterproto2.Message)
Q = TypeVar("Q", bound=betterproto2.Message)

_BUDGET: Final = 60.0  # seconds for a request that tells none

_log = structlog.get_logger()


End = Callable[[], None]
"""Call it to be asked, or to hear, no more."""


@dataclass(slots=True, eq=False)
class _Wanted:
    """A subscription that every connection gets; `live` is that of the present one."""

    subject: str
    queue: str
    callback: Callable[[Msg], Awaitable[None]]
    live: Subscription | None = field(default=None, init=False)


class Bus:
    """One service's part in the conversation."""

    def __init__(self, *, url: str, service: str, node: str = "", metrics: Metrics | None = None) -> None:
        self._service = events.require_subject_part(service, field="service")
        self.node = events.require_subject_part(node, field="node") if node else ""
        self._metrics = metrics or Metrics(node=node)
        self._connection = Connection(
            address=Address.parse(url),
            name=f"{service} {node}".strip(),
            prepare=self._prepare,
            work=self._work,
            away=lambda cause: _log.warning("NATS is away", cause=cause),
        )
        self._subscriptions: list[_Wanted] = []
        self._prepared: Client | None = None  # has all of them
        self._answers: asyncio.TaskGroup | None = None
        # There is a node service on every machine, and none of them is to touch the past of the others.
        self._outbox = Outbox(metrics=self._metrics, keeps_stream=service != "node")
        self.connections = 0  # so far: between two of them events may have been missed

    @property
    def is_connected(self) -> bool:
        return self._connection.client is not None

    @property
    def cause(self) -> str:
        """Why NATS is away."""
        return self._connection.cause

    @property
    def unsent(self) -> int:
        """Events that NATS has not confirmed yet."""
        return len(self._outbox)

    async def run(self) -> None:
        """Connect for ever; when cancelled, tell who still asks, send unsent events, and end within 3 s."""
        async with asyncio.TaskGroup() as tasks:
            connection = tasks.create_task(self._connection.run())
            try:
                async with asyncio.TaskGroup() as self._answers:
                    await asyncio.get_running_loop().create_future()
            finally:
                self._answers = None
                connection.cancel()

    # ---- requests

    async def request(self, subject: str, message: betterproto2.Message, reply: type[R], *, timeout: float) -> R:
        """Ask, and wait `timeout` seconds at most.

        Raises:
            NotReady: NATS is away, nobody answers on `subject`, or not in time.
            DriverError: the other side's own word.
        """
        service = (subject.split(".", 3) + [""] * 3)[2] or subject
        if not self.is_connected:
            cause = self._connection.cause
            raise NotReady(f"NATS is away ({cause}): {service} can't be asked; check that nats-server runs")
        headers = {"Request-Id": log.request_id.get(), "Timeout-Ms": str(max(1, int(timeout * 1000)))}
        try:
            answer = await self._connection.ask(subject, bytes(message), timeout=timeout, headers=headers)
        except nats.errors.NoRespondersError:
            raise NotReady(f"nobody answers on {subject}: is {service} running?") from None
        except TimeoutError:
            raise NotReady(f"{service} did not answer on {subject} within {timeout:g} s: see its log") from None
        except nats.errors.Error as error:
            raise NotReady(f"NATS is away ({in_words(error)}): {service} can't be asked") from None
        if answer.headers and (refusal := _from_headers(answer.headers)) is not None:
            raise refusal
        try:
            return reply.parse(answer.data)
        except Exception:  # noqa: BLE001 - the parser raises what it likes for what is no message
            raise DriverError(f"{service} answered on {subject} with what is no {reply.__name__}") from None

    async def ask_all(self, subject: str, message: betterproto2.Message, reply: type[R], *, wait: float) -> list[R]:
        """Ask everyone who answers on `subject`; what they say within `wait` seconds.

        Raises:
            NotReady: NATS is away.
        """
        if (client := self._connection.client) is None:
            raise NotReady(f"NATS is away ({self._connection.cause}): check that nats-server runs")
        answers = list[R]()

        async def take(answer: Msg) -> None:
            answers.append(reply.parse(answer.data))

        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=take)
        try:
            await client.publish(subject, bytes(message), reply=inbox)
            await asyncio.sleep(wait)
        except nats.errors.Error as error:
            raise NotReady(f"NATS is away ({in_words(error)})") from None
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
        return answers

    def serve(
        self, subject: str, request: type[Q], answer: Callable[[Q], Awaitable[betterproto2.Message]], *, queue: str = ""
    ) -> End:
        """Answer requests on `subject`, each in a task of its own, within the asker's remaining time.

        What `answer` raises is raised where it was asked: a DriverError as itself, anything else as an internal error.
        """

        async def spawn(message: Msg) -> None:
            # nats-py awaits a callback before it takes the next message, so this one must not wait for the answer.
            if self._answers is not None:
                answering = self._answer(message, request, answer)
                try:
                    self._answers.create_task(answering)
                except RuntimeError:  # the program ends; the asker's time will pass
                    answering.close()

        return self._want(_Wanted(subject, queue, spawn))

    async def _answer(
        self, message: Msg, request: type[Q], answer: Callable[[Q], Awaitable[betterproto2.Message]]
    ) -> None:
        asked = message.headers or {}
        with log.bound(request=asked.get("Request-Id", "")[:64], rpc=message.subject.rpartition(".")[2]):
            try:
                async with asyncio.timeout(_budget(asked)):
                    reply = bytes(await answer(_parse(request, message.data)))
            except asyncio.CancelledError:
                await self._reply(message, b"", _to_headers(NotReady(f"{self._service} is stopping")))
                raise
            except TimeoutError:
                _log.warning("request not done in time", subject=message.subject)
                await self._reply(message, b"", _to_headers(NotReady(f"{self._service} was not done in time")))
            except DriverError as error:
                _log.warning("request refused", subject=message.subject, error=str(error))
                await self._reply(message, b"", _to_headers(error))
            except Exception as error:  # noqa: BLE001 - whatever one request runs into, the service goes on
                _log.error("request failed", subject=message.subject, exc_info=error)
                words = f"{log.in_words(error)} in {self._service}: see its log, request {log.request_id.get()}"
                await self._reply(message, b"", _to_headers(DriverError(words)))
            else:
                _log.debug("request answered", subject=message.subject)
                await self._reply(message, reply, None)

    async def _reply(self, message: Msg, payload: bytes, headers: dict[str, str] | None) -> None:
        if (client := self._connection.client) is None or not message.reply:
            return
        try:
            await client.publish(message.reply, payload, headers=headers)
        except nats.errors.Error as error:
            _log.warning("answer lost", subject=message.subject, error=in_words(error))

    # ---- events

    def on_event(self, subject: str, hear: Callable[[Event], None]) -> End:
        """Hear events as they are said, such as `juicefs.event.node.n1.>`; what is said while NATS is away is lost."""

        async def pass_on(message: Msg) -> None:
            try:
                hear(Event.parse(message.data))
            except Exception as error:  # noqa: BLE001 - one bad event must not end the subscription
                _log.error("event not understood", subject=message.subject, exc_info=error)

        return self._want(_Wanted(subject, "", pass_on))

    def say(self, what: betterproto2.Message, *, volume_id: str = "", mount: str = "", node: str = "") -> None:
        """Tell a fact, of `node` if this service belongs to none.

        Never waits, never fails: the last 1000 are kept while NATS is away, and drops are counted.
        """
        said = events.event(what, volume_id=volume_id, mount=mount, request_id=log.request_id.get())
        said.service, said.node = self._service, self.node or node
        try:
            self._outbox.put(events.subject(said), bytes(said))
        except Exception as error:  # noqa: BLE001 - whoever says something must not suffer from how it is told
            _log.error("event not sendable", kind=events.kind(said), exc_info=error)

    # ---- what each connection gets

    def _want(self, wanted: _Wanted) -> End:
        self._subscriptions.append(wanted)
        if self._prepared is not None and self._answers is not None:
            self._answers.create_task(self._subscribe(self._prepared, wanted))
        return lambda: self._unwant(wanted)

    def _unwant(self, wanted: _Wanted) -> None:
        self._subscriptions.remove(wanted)
        if wanted.live is not None and self._answers is not None:
            self._answers.create_task(_unsubscribe(wanted.live))

    async def _prepare(self, client: Client) -> None:
        self._prepared = client  # what is wanted from here on is subscribed beside these
        for wanted in list(self._subscriptions):
            await self._subscribe(client, wanted)

    async def _subscribe(self, client: Client, wanted: _Wanted) -> None:
        with suppress(nats.errors.ConnectionClosedError):  # the next connection gets it
            wanted.live = await client.subscribe(
                wanted.subject,
                wanted.queue,
                cb=wanted.callback,
                pending_msgs_limit=10_000,
                pending_bytes_limit=16 << 20,
            )
            if wanted not in self._subscriptions:
                await _unsubscribe(wanted.live)

    async def _work(self, client: Client) -> None:
        _log.info("connected to NATS", server=str(self._connection.address))
        if self.connections:
            self._metrics.bus_reconnects.inc()
        self.connections += 1
        await self._outbox.empty_into(client)


async def _unsubscribe(live: Subscription) -> None:
    """What has come is answered yet."""
    with suppress(nats.errors.Error):  # it ends with its connection
        await cancellable(live.drain())  # type: ignore[no-untyped-call]


def _parse(kind: type[Q], payload: bytes) -> Q:
    try:
        return kind.parse(payload)
    except Exception:  # noqa: BLE001 - the parser raises what it likes for what is no message
        raise InvalidRequest(f"the payload is no {kind.__name__}") from None


def _budget(headers: Mapping[str, str]) -> float:
    """Seconds that the asker will still wait."""
    text = headers.get("Timeout-Ms", "")
    return int(text) / 1000 if text.isascii() and text.isdigit() else _BUDGET


def _to_headers(error: DriverError) -> dict[str, str]:
    """A header is one line of text, so what is more is percent-encoded."""
    text = quote(str(error)[:4096], safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~", errors="replace")
    reason = {"Juicefs-Reason": error.reason} if isinstance(error, CommandFailed) else {}
    word = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in BY_NAME)
    return {"Juicefs-Error": word, "Juicefs-Message": text, **reason}


def _from_headers(headers: Mapping[str, str]) -> DriverError | None:
    name = headers.get("Juicefs-Error")
    if name is None:
        return None
    message = unquote(headers.get("Juicefs-Message", ""))
    word = BY_NAME.get(name, DriverError)
    if word is CommandFailed:
        return CommandFailed(message, reason=headers.get("Juicefs-Reason", "UNKNOWN"))
    return word(message)
