"""Bad input: hostile texts, every way to put one of them into a valid request, and mutations of a request's bytes."""

import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import betterproto2
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

NUMBERS = (-1, 2**63 - 1, -(2**63))


def texts(owned: Path) -> dict[str, str]:
    """By what is wrong with them; where one is ever executed, the file `owned` appears."""
    return {
        "empty": "",
        "blank": "  ",
        "dots": "../../..",
        "nul": "a\0b",
        "newline": "a\nb",
        "quotes": "a'b\"c",
        "command": f"$(touch {owned})",
        "backticks": f"`touch {owned}`",
        "shell": f"; touch {owned} #",
        "option": "--force",
        "long": "x" * 300,
        "oversized": "x" * 5000,
    }


def variants(message: Any, payloads: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """(what is wrong, request): each field in turn missing or one of the payloads, and everything else as it was."""
    for field in dataclasses.fields(message):
        if not field.name.startswith("_"):
            for what, other in _others(getattr(message, field.name), payloads):
                yield f"{field.name}{what}", dataclasses.replace(message, **{field.name: other})


def _others(value: Any, payloads: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    match value:
        case str():
            yield from ((f" {name}", text) for name, text in payloads.items())
        case IntEnum():
            yield from ((f"={number}", number) for number in (0, 99))
        case int() if not isinstance(value, bool):
            yield from ((f"={number}", number) for number in NUMBERS)
        case betterproto2.Message():
            yield " missing", None
            yield from ((f".{what}", other) for what, other in variants(value, payloads))
        case dict():
            yield " missing", {}
            yield from ((f"[{name}]", value | {payloads[name]: "x"}) for name in ("nul", "command", "long"))
            yield from _in_turn(value, value.items(), payloads)
        case list():
            yield " missing", []
            yield from _in_turn(value, enumerate(value), payloads)


def _in_turn(values: Any, items: Iterable[tuple[Any, Any]], payloads: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """A map or a list, each of its values in turn replaced."""
    for key, value in items:
        for what, other in _others(value, payloads):
            changed = values.copy()
            changed[key] = type(value)() if other is None else other  # neither can hold what is not there
            yield f"[{key}]{what}", changed


def mutations(seeds: list[bytes], *, count: int, seed: int) -> Iterator[bytes]:
    """The bytes of requests, each damaged in one to four places; the same ones for the same `seed`."""
    source = random.Random(seed)  # noqa: S311 - to be the same each time
    for _ in range(count):
        content = bytearray(source.choice(seeds))
        for _ in range(source.randint(1, 4)):
            start = source.randrange(len(content) + 1)
            end = min(len(content), start + source.choice((0, 1, 1, 2, 8, 64)))
            other = source.choice(seeds)
            content[start:end] = source.choice(
                (b"", source.randbytes(end - start), source.randbytes(3), other[start:end] * 2, b"\xff" * (end - start))
            )
        yield bytes(content[: source.choice((len(content), len(content), source.randrange(len(content) + 1)))])


class Raw(CodecBase):
    """Requests and replies as bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: type[Any]) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: type[Any]) -> bytes:
        return data


async def send(channel: Channel, rpc: str, body: bytes, *, timeout: float = 40.0) -> tuple[Status, str]:
    """Send these bytes as the whole body of a call, also when they are no frame; what it is answered with."""
    call = UnaryUnaryMethod(channel, f"/csi.v1.{rpc}", bytes, bytes)
    try:
        async with call.open(timeout=timeout) as stream:
            await stream.send_request()
            await stream._stream.send_data(body, end_stream=True)
            stream._send_message_done = stream._end_done = True
            await stream.recv_message()
    except GRPCError as error:
        return error.status, error.message or ""
    except TimeoutError:
        return Status.DEADLINE_EXCEEDED, ""
    return Status.OK, ""


def frame(content: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, itself."""
    return b"\0" + len(content).to_bytes(4, "big") + content
