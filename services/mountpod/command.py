"""`juicefs-csi-mount`: lists the clients that run, and replaces them without a failed call, one after another."""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import orjson

from shared import log, options
from shared.api.juicefs.v1 import ListReply, ListRequest, RestartReply, RestartRequest
from shared.bus import Bus
from shared.errors import DriverError, InUse, NotReady

_CONNECT_TIMEOUT: Final = 5.0
_LIST_WAIT: Final = 1.0
_RESTART_TIMEOUT: Final = 180.0
_STEP: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client that runs, or is being started."""

    node: str
    volume: str
    mount: str


async def find(bus: Bus, *, volume: str = "", node: str = "") -> list[Client]:
    """The clients of a volume, or on a node, or all: sorted by node and mount.

    Raises:
        NotReady: NATS is away.
    """
    answers = await bus.ask_all("juicefs.rpc.mountpod.List", ListRequest(), ListReply, wait=_LIST_WAIT)
    found = [
        Client(node=answer.node, volume=client.volume_id, mount=client.mount)
        for answer in answers
        for client in answer.clients
        if volume in {"", client.volume_id} and node in {"", answer.node}
    ]
    return sorted(found, key=lambda client: (client.node, client.mount))


async def upgrade(bus: Bus, clients: Sequence[Client], *, is_json: bool) -> int:
    """Replace each by a client made of today's settings and image; stop at the first that fails. The exit code.

    Pods of another driver, which can't hand over, are left alone.
    """
    for number, client in enumerate(clients, start=1):
        place = f"[{number}/{len(clients)}] {client.node}  {client.mount}"
        began = time.monotonic()
        if not is_json:
            print(f"{place}  …", end="", flush=True)
        subject = f"juicefs.rpc.mountpod.{client.node}.Restart"
        error, is_left = "", False
        try:
            await bus.request(subject, RestartRequest(mount=client.mount), RestartReply, timeout=_RESTART_TIMEOUT)
        except DriverError as refusal:
            error, is_left = str(refusal), isinstance(refusal, InUse)
        seconds = time.monotonic() - began
        if is_json:
            facts = {"node": client.node, "volume": client.volume, "mount": client.mount, "seconds": round(seconds, 3)}
            print(orjson.dumps(facts | {"error": error}).decode(), flush=True)
        else:
            print(f" {error}" if error else f" replaced in {seconds:.1f} s", flush=True)
        if error and not is_left:
            rest = len(clients) - number
            _tell(f"stopped: {rest} of {len(clients)} not tried; what was replaced stays so, and all go on serving")
            return 1
    return 0


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Bus]:
    bus = Bus(url=url, service="command")
    running = asyncio.create_task(bus.run())
    try:
        deadline = time.monotonic() + _CONNECT_TIMEOUT
        while not bus.is_connected:
            if time.monotonic() > deadline:
                raise NotReady(f"NATS is away ({bus.cause}): see --nats, and that nats-server runs")
            await asyncio.sleep(_STEP)
        yield bus
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _run(parsed: argparse.Namespace) -> int:
    async with _connected(options.nats_url(parsed)) as bus:
        clients = await find(bus, volume=parsed.volume, node=parsed.node)
        if parsed.verb == "list":
            _show(clients, is_json=parsed.json)
            return 0
        if not clients:
            raise NotReady("no client runs that fits: see `juicefs-csi-mount list`")
        return await upgrade(bus, clients, is_json=parsed.json)


def _show(clients: Sequence[Client], *, is_json: bool) -> None:
    for client in clients:
        facts = {"node": client.node, "volume": client.volume, "mount": client.mount}
        print(orjson.dumps(facts).decode() if is_json else f"{client.node:<24}  {client.mount:<56}  {client.volume}")
    if not clients and not is_json:
        _tell("no client runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Console script juicefs-csi-mount."""
    parser = argparse.ArgumentParser(prog="juicefs-csi-mount", description="The JuiceFS clients that run on the nodes.")
    options.add_nats(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|upgrade")
    for verb, words in (
        ("list", "show the clients"),
        ("upgrade", "replace clients by such of today's image and settings, one after another, without a failed call"),
    ):
        one = verbs.add_parser(verb, help=words, description=words)
        one.add_argument("--volume", default="", metavar="ID", help="only of this volume (its volumeHandle)")
        one.add_argument("--node", default="", metavar="NAME", help="only on this node")
        one.add_argument("--json", action="store_true", help="one JSON object a line")
        if verb == "upgrade":
            one.add_argument("--all", action="store_true", help="every client of every node")
    parsed = _parsed(parser, argv)
    log.configure(level="critical", style="console")
    try:
        return asyncio.run(_run(parsed))
    except DriverError as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    parsed = options.parse(parser, argv)
    if parsed.verb == "upgrade" and not (parsed.all or parsed.volume or parsed.node):
        parser.error("upgrade which clients? --volume ID, --node NAME, or --all")
    return parsed


def _tell(text: str) -> None:
    print(f"juicefs-csi-mount: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
