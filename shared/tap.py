"""juicefs-csi-tap: shows what passes on the bus, one line an event, live or from the past."""

import argparse
import asyncio
import difflib
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api as jetstream
from nats.js import errors as jetstream_errors

from shared import events, log, options
from shared.api.juicefs.v1 import Event
from shared.connection import PATIENCE, Address, Connection, cancellable
from shared.errors import DriverError
from shared.eventline import Filter, as_json, as_line, shown

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Tap:
    """Follows the event stream, or the live events of a server that keeps none."""

    def __init__(self, parsed: argparse.Namespace) -> None:
        self.done = asyncio.Event()
        self._filter = Filter(nodes=frozenset(parsed.node), volumes=tuple(parsed.volume), kinds=frozenset(parsed.kind))
        self._is_json = parsed.json
        self._is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._since: datetime | None = parsed.since
        self._wants_past = parsed.since is not None
        self._follows = parsed.follow
        self._address = Address.parse(options.nats_url(parsed))
        self._has_waited = False

    async def run(self) -> None:
        connection = Connection(
            address=self._address, name="tap", prepare=self._greet, work=self._follow, away=self._wait
        )
        running = asyncio.create_task(connection.run())
        await self.done.wait()
        running.cancel()
        await asyncio.wait({running})

    def _wait(self, cause: str) -> None:
        self._has_waited = True
        _tell(f"waiting for NATS at {self._address}: {cause}")

    async def _greet(self, client: Client) -> None:
        if self._has_waited:
            _tell(f"connected to NATS at {self._address}")

    async def _follow(self, client: Client) -> None:
        """From the stream, so that a lost connection leaves no gap: the next one starts after the last event seen."""
        start = jetstream.DeliverPolicy.NEW if self._since is None else jetstream.DeliverPolicy.BY_START_TIME
        consumer = jetstream.ConsumerConfig(
            deliver_policy=start, opt_start_time=self._since, ack_policy=jetstream.AckPolicy.NONE, mem_storage=True
        )
        try:
            streams = client.jetstream(timeout=PATIENCE)
            stream = await cancellable(
                streams.subscribe(events.EVERYTHING, stream=events.STREAM, config=consumer, cb=self._hear)
            )
            info = await cancellable(stream.consumer_info())
        except (jetstream_errors.Error, nats.errors.NoRespondersError, TimeoutError):
            await self._follow_live(client)
            return
        self._since = self._since or datetime.now(UTC)
        is_nothing_there = not info.num_pending and (info.delivered is None or not info.delivered.consumer_seq)
        if is_nothing_there and not self._follows:
            self.done.set()

    async def _follow_live(self, client: Client) -> None:
        if self._wants_past:
            _tell("this server keeps no events: there is no past to show")
        if not self._follows:
            self.done.set()
        await client.subscribe(events.EVERYTHING, cb=self._hear)

    async def _hear(self, message: Msg) -> None:
        try:
            self._show(Event.parse(message.data))
        except BrokenPipeError:
            self.done.set()
        except Exception as error:  # noqa: BLE001 - one bad event must not end the rest
            _tell(f"an event on {shown(message.subject)} could not be read: {type(error).__name__}")
        with suppress(nats.errors.NotJSMessageError):  # a live one
            told = message.metadata
            self._since = told.timestamp + timedelta(microseconds=1)
            if not self._follows and not told.num_pending:
                self.done.set()

    def _show(self, said: Event) -> None:
        if self.done.is_set() or not self._filter.shows(said):
            return
        today = datetime.now().astimezone()
        print(as_json(said) if self._is_json else as_line(said, is_coloured=self._is_coloured, today=today), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C, or until whoever reads the output leaves."""
    parsed = options.parse(_parser(), argv)
    log.configure(level="error", style="console")
    try:
        asyncio.run(_live(parsed))
    except DriverError as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        pass  # before the loop could listen to it
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it exits
    return 0


async def _live(parsed: argparse.Namespace) -> None:
    tap = Tap(parsed)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, tap.done.set)
    await tap.run()


def _tell(text: str) -> None:
    print(f"juicefs-csi-tap: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-tap", description="Show the events of the JuiceFS CSI driver, one line each."
    )
    options.add_nats(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--since", type=moment, metavar="WHEN", help="replay from then: 10m, 1h30m, 2026-11-23T10:00")
    parser.add_argument("--no-follow", dest="follow", action="store_false", help="stop where the past ends")
    parser.add_argument("--node", action="append", default=[], help="only this node (repeatable)")
    parser.add_argument(
        "--volume", action="append", default=[], help="only this volume, or part of its id (repeatable)"
    )
    parser.add_argument("--kind", action="append", default=[], type=_kind, help="only this kind (repeatable)")
    return parser


def moment(text: str) -> datetime:
    duration = _DURATION.fullmatch(text)
    if duration is not None and text:
        days, hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return datetime.now(UTC) - timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("give 10m, 1h30m, or a time such as 2026-11-23T10:00") from None


def _kind(text: str) -> str:
    known = {kind.lower(): kind for kind in events.KINDS}
    if text.lower() in known:
        return known[text.lower()]
    near = difflib.get_close_matches(text.lower(), known, n=1)
    guess = f"did you mean {known[near[0]]}? " if near else ""
    raise argparse.ArgumentTypeError(f"no such kind; {guess}known are {', '.join(sorted(events.KINDS))}")


if __name__ == "__main__":
    sys.exit(main())
