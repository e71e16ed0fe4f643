"""The events that NATS has not confirmed yet, and the stream that keeps those it has."""

import asyncio
from collections import deque
from contextlib import suppress
from itertools import islice
from secrets import token_hex
from typing import Final, NamedTuple

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import api as jetstream
from nats.js import errors as jetstream_errors

from shared import events
from shared.connection import PATIENCE, cancellable, in_words
from shared.metrics import Metrics

_KEPT: Final = 1000  # events
_LONGEST: Final = 32 << 10  # bytes of one event
_BATCH: Final = 100  # events between two confirmations
_STREAM_RETRY: Final = 30.0  # seconds
_LAST_WORDS: Final = 1.0  # seconds, when the program ends
_STREAM: Final = jetstream.StreamConfig(
    name=events.STREAM,
    subjects=[events.EVERYTHING],
    max_age=24 * 3600,
    max_bytes=64 << 20,
    discard=jetstream.DiscardPolicy.OLD,
    storage=jetstream.StorageType.FILE,
)
_DIFFERS: Final = 10058  # JetStream's error code: the stream exists, with another configuration

_log = structlog.get_logger()


class _Letter(NamedTuple):
    subject: str
    payload: bytes
    headers: dict[str, str]


class Outbox:
    """Holds the last 1000 events at most; older ones are dropped and counted.

    Who does not `keeps_stream` leaves it to others: whoever can change the stream can empty it.
    """

    def __init__(self, *, metrics: Metrics, keeps_stream: bool = True) -> None:
        self._metrics = metrics
        self._keeps_stream = keeps_stream
        self._letters: deque[_Letter] = deque()
        self._filled = asyncio.Event()
        self._is_stream_missed = False

    def __len__(self) -> int:
        return len(self._letters)

    def put(self, subject: str, payload: bytes) -> None:
        if len(payload) > _LONGEST:
            self._metrics.bus_dropped.inc()
            _log.warning("event too long", subject=subject, bytes=len(payload))
            return
        # What was not confirmed is sent again: by this id the stream drops what it has already.
        self._letters.append(_Letter(subject, payload, {"Nats-Msg-Id": token_hex(8)}))
        if len(self._letters) > _KEPT:
            self._letters.popleft()
            self._metrics.bus_dropped.inc()
        self._filled.set()

    async def empty_into(self, client: Client) -> None:
        """Send what is there and what comes, as long as the connection lives; when cancelled, the rest within 1 s."""
        try:
            async with asyncio.TaskGroup() as tasks:
                has_stream = not self._keeps_stream or await self._ensure_stream(client)
                tasks.create_task(self._keep_sending(client))
                while not has_stream:
                    await asyncio.sleep(_STREAM_RETRY)
                    has_stream = await self._ensure_stream(client)
        except asyncio.CancelledError:
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    while self._letters:
                        await self._send(client)
            raise

    async def _keep_sending(self, client: Client) -> None:
        while await self._filled.wait():
            await self._send(client)

    async def _send(self, client: Client) -> None:
        batch = list(islice(self._letters, _BATCH))
        for letter in batch:
            await client.publish(letter.subject, letter.payload, headers=letter.headers)
        # In a task, so that nats-py's flusher has its turn before: the ping overtakes what it has yet to send.
        await cancellable(client.flush(PATIENCE))
        for letter in batch:
            if self._letters and self._letters[0] is letter:  # else it was dropped meanwhile
                self._letters.popleft()
        if not self._letters:
            self._filled.clear()

    async def _ensure_stream(self, client: Client) -> bool:
        """True if events are kept; a server without JetStream is no obstacle to anything else."""
        streams = client.jetstream(timeout=PATIENCE)
        try:
            try:
                await cancellable(streams.add_stream(_STREAM))
            except jetstream_errors.BadRequestError as error:
                if error.err_code != _DIFFERS:
                    raise
                await cancellable(streams.update_stream(_STREAM))
        except (jetstream_errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
            if not self._is_stream_missed:
                _log.warning("no event stream: events are live only", cause=in_words(error))
            self._is_stream_missed = True
            return False
        self._is_stream_missed = False
        return True
