"""An event as a line: for a person, or for a machine; and which events to show."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from shared import events
from shared.api.juicefs.v1 import Event

_SHORT: Final = 12  # characters of a volume: "pvc-" and eight of its uuid
_GIB: Final = 1 << 30
_RED, _GREEN, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_COLOURS: Final = {
    **dict.fromkeys(("MountFailed", "ClientExited", "ClientGivenUp"), _RED),
    **dict.fromkeys(("TargetBound", "ClientReady", "VolumeCreated", "VolumeExpanded", "ServiceStarted"), _GREEN),
    **dict.fromkeys(("TargetRebound", "DescriptorTaken", "MountSuperseded", "ServiceStopping"), _YELLOW),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What to show; an empty field shows everything. A volume is named by its id, its mount, or a part of either."""

    nodes: frozenset[str] = frozenset()
    volumes: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()

    def shows(self, said: Event) -> bool:
        return (
            (not self.nodes or said.node in self.nodes)
            and (not self.kinds or events.kind(said) in self.kinds)
            and (not self.volumes or any(part in said.volume_id or part in said.mount for part in self.volumes))
        )


def as_json(said: Event) -> str:
    """One object; `facts` has the fields of the event's kind, by their names in bus.proto."""
    when = datetime.fromtimestamp(said.time_ms / 1000, UTC)
    line = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "service": said.service,
        "node": said.node,
        "volume_id": said.volume_id,
        "mount": said.mount,
        "request_id": said.request_id,
        "kind": events.kind(said),
        "facts": events.facts(said),
    }
    return orjson.dumps(line).decode()


def as_line(said: Event, *, is_coloured: bool, today: datetime) -> str:
    """For a person: local time, with the date if it isn't today's; node, or the service that has none."""
    when = datetime.fromtimestamp(said.time_ms / 1000).astimezone()
    clock = when.strftime("%H:%M:%S.") + f"{when.microsecond // 1000:03}"
    if when.date() != today.date():
        clock = f"{when:%m-%d} {clock}"
    kind = events.kind(said) or "?"
    volume = _short(shown(said.volume_id or said.mount or "-"))
    facts = " ".join(filter(None, (_fact(name, value) for name, value in events.facts(said).items())))
    place = shown(said.node or said.service or "-")
    if is_coloured:
        colour = _COLOURS.get(kind, "")
        return f"{_DIM}{clock}{_PLAIN}  {place:<12}  {volume:<12}  {colour}{kind:<16}{_PLAIN}  {facts}".rstrip()
    return f"{clock}  {place:<12}  {volume:<12}  {kind:<16}  {facts}".rstrip()


def _short(volume: str) -> str:
    if len(volume) <= _SHORT:
        return volume
    return volume[:_SHORT] if volume.startswith("pvc-") else f"{volume[: _SHORT - 1]}…"


def _fact(name: str, value: Any) -> str:
    match value:
        case False | "":
            return ""
        case True:
            return name
        case int() if name.endswith("_bytes"):
            return f"{name.removesuffix('_bytes')}={value // _GIB}GiB" if value % _GIB == 0 else f"{name}={value}"
        case int() if name.endswith("_ms"):
            return f"{name.removesuffix('_ms')}={value}ms"
        case _:
            return f"{name}={shown(str(value))}"


def shown(text: str) -> str:
    """As it is, if it is one printable word; else quoted, so that no event can play with the terminal."""
    return text if text.isprintable() and not re.search(r'[\s"]', text) else json.dumps(text)
