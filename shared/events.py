"""Events: facts that the services say on the bus, and what is known of them without asking anybody.

An event's kind is the name of the message in `Event.what`; the subject tells service, node and kind, so that NATS
itself can select.
"""

import re
import time
from dataclasses import fields
from typing import Any, Final, Protocol

import betterproto2

from shared.api.juicefs.v1 import Event
from shared.errors import InvalidRequest

STREAM: Final = "JUICEFS_EVENTS"
EVERYTHING: Final = "juicefs.event.>"
_TOKENS = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

KINDS: Final[dict[str, str]] = {
    "".join(part.capitalize() for part in field.name.split("_")): field.name
    for field in fields(Event)
    if field.metadata["betterproto"].group == "what"
}
"""Kind → field of Event."""


class Say(Protocol):
    """Tells an event to whoever listens; `shared.bus.Bus.say` is the one in production."""

    def __call__(self, what: betterproto2.Message, *, volume_id: str = "", mount: str = "") -> None: ...


def event(what: betterproto2.Message, *, volume_id: str, mount: str, request_id: str) -> Event:
    """`what` as an event of this moment; who says it adds service and node."""
    kinds: dict[str, Any] = {KINDS[type(what).__name__]: what}
    return Event(time_ms=time.time_ns() // 1_000_000, volume_id=volume_id, mount=mount, request_id=request_id, **kinds)


def kind(said: Event) -> str:
    """The kind of an event; empty for one of a newer driver."""
    _, what = betterproto2.which_one_of(said, "what")
    return type(what).__name__ if what is not None else ""


def facts(said: Event) -> dict[str, Any]:
    """What the event says beyond when, where and of what, by the names of its fields."""
    _, what = betterproto2.which_one_of(said, "what")
    return {field.name: getattr(what, field.name) for field in fields(what)} if what is not None else {}


def subject(said: Event) -> str:
    """`juicefs.event.<service>.<node or _>.<Kind>`."""
    return f"juicefs.event.{said.service}.{said.node or '_'}.{kind(said)}"


def require_subject_part(value: str, *, field: str) -> str:
    """Refuse what can't be a part of a NATS subject as it is: spaces, wildcards, empty parts between dots.

    Raises:
        InvalidRequest: names the field.
    """
    if not _TOKENS.fullmatch(value):
        raise InvalidRequest(f"{field} must be letters, digits, '-', '_' and single dots: it becomes part of a subject")
    return value
