"""What the controller promised about volumes, kept in the file system itself: memory is a cache.

    .juicefs-csi/volumes/<name>         what CreateVolume promised, as JSON; appears whole, and is never rewritten
    .juicefs-csi/grown/<name>/<bytes>   an empty file, for each capacity that an expansion gave, or was about to give
    .juicefs-csi/places/<name>          an empty file, for volumes that lie elsewhere than at /<volume id>

<name> is made of the volume id (`shared.settings.unique_id`). A volume's capacity is the largest of its record and of
what it has grown to: the client prints quotas rounded. Places save reading every record when a directory is to be
deleted; a place without a record means nothing.
"""

import asyncio
from dataclasses import dataclass
from secrets import token_hex
from typing import Final, Self

import orjson

from services.controller.webdav import Webdav
from shared.domain import Subpath
from shared.errors import AlreadyExists, Busy, InUse, InvalidRequest
from shared.settings import unique_id

_OURS: Final = Subpath(text=".juicefs-csi")
_VOLUMES: Final = _OURS / Subpath(text="volumes")
_GROWN: Final = _OURS / Subpath(text="grown")
_PLACES: Final = _OURS / Subpath(text="places")
_DRAFTS: Final = _OURS / Subpath(text="drafts")
_NAME_BYTES: Final = 255
_RESERVED: Final = (_OURS, Subpath(text=".trash"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A volume: its directory, and its capacity in bytes (0: no limit), at first as created. `source` is for copies."""

    volume_id: str
    path: Subpath
    capacity: int
    source: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(
            {"volume_id": self.volume_id, "path": self.path.text, "capacity": self.capacity, "source": self.source}
        )

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Raises InvalidRequest, ValueError, KeyError or TypeError for what is no record."""
        value = orjson.loads(content)
        path = require_own(Subpath.parse(value["path"], field="path"))
        return cls(volume_id=value["volume_id"], path=path, capacity=int(value["capacity"]), source=value["source"])


def require_own(path: Subpath) -> Subpath:
    """A directory that a volume may have: neither the whole file system nor what it keeps for itself.

    Raises:
        InvalidRequest: it is one of those, or can't be a directory.
    """
    if any(path.overlaps(reserved) for reserved in _RESERVED):
        raise InvalidRequest(f"a volume's directory can't be {path}")
    if any(len(part.encode()) > _NAME_BYTES for part in path.text.split("/")):
        raise InvalidRequest(f"a volume's directory: a name is longer than {_NAME_BYTES} bytes")
    return path


class Records:
    """The records of one file system."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Record] = {}  # those of places, by name and tag of the place
        self._making: asyncio.Task[None] | None = None

    async def get(self, webdav: Webdav, volume_id: str) -> Record | None:
        """The record of a volume.

        Raises:
            InUse: the record can't be read. AlreadyExists: it is another volume's.
        """
        record = await self._read(webdav, unique_id(volume_id))
        if record and record.volume_id != volume_id:
            raise AlreadyExists(f"volume id {volume_id} has the record of another volume: choose another name")
        return record

    async def add(self, webdav: Webdav, record: Record) -> Record:
        """Record it, unless the volume has a record by then: that one is returned."""
        name = _name(record.volume_id)
        await self._ensure_directories(webdav)
        if not _is_at_its_id(record):
            await webdav.put(_PLACES / name, b"")
        draft = _DRAFTS / Subpath(text=f"{name.text}.{token_hex(8)}")
        await webdav.put(draft, record.to_json())
        if await webdav.move(draft, _VOLUMES / name):
            return record
        await webdav.delete_tree(draft)
        if existing := await self.get(webdav, record.volume_id):
            return existing
        raise Busy(f"volume {record.volume_id} was recorded and deleted by another controller: try again")

    async def grown(self, webdav: Webdav, volume_id: str) -> int:
        """The largest capacity in bytes that an expansion noted; 0 if there was none."""
        noted = await webdav.list(_GROWN / _name(volume_id))
        return max((int(size) for size in noted if size.isascii() and size.isdigit()), default=0)

    async def grow(self, webdav: Webdav, volume_id: str, capacity: int) -> None:
        """Note a capacity in bytes, in one step: an empty file is whole when it appears."""
        directory = _GROWN / _name(volume_id)
        await webdav.make_directory(directory)
        await webdav.put(directory / Subpath(text=str(capacity)), b"")

    async def forget_grown(self, webdav: Webdav, volume_id: str) -> None:
        """Before the record goes: the next volume of this name begins anew."""
        await webdav.delete_tree(_GROWN / _name(volume_id))

    async def remove(self, webdav: Webdav, record: Record) -> None:
        """No error if there is none."""
        if not _is_at_its_id(record):
            await self.remove_place(webdav, record.volume_id)
        await webdav.delete_tree(_VOLUMES / _name(record.volume_id))

    async def remove_place(self, webdav: Webdav, volume_id: str) -> None:
        """What a create left that was cut off before it wrote its record."""
        await webdav.delete_tree(_PLACES / _name(volume_id))

    async def places(self, webdav: Webdav) -> dict[str, str]:
        """Which records say that their volume lies elsewhere than at its id, each with the tag of its place."""
        return await webdav.list(_PLACES)

    async def overlapping(self, webdav: Webdav, record: Record, *, places: dict[str, str]) -> list[Record]:
        """Every other volume whose directory is this one, lies in it, or holds it; `places` were just listed."""
        found = {place: self._known.get(place) or await self._read(webdav, place[0]) for place in places.items()}
        self._known = {place: other for place, other in found.items() if other}
        others = {other.volume_id: other for other in self._known.values()}
        first = record.path.text.partition("/")[0]
        if first != record.volume_id and (other := await self._read(webdav, unique_id(first))):
            others[other.volume_id] = other
        others.pop(record.volume_id, None)
        return [other for other in others.values() if other.path.overlaps(record.path)]

    async def _ensure_directories(self, webdav: Webdav) -> None:
        """Callers at the same time share one run: the gateway lets one at a time at a directory."""
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(_make_directories(webdav))
            self._making.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._making)

    async def _read(self, webdav: Webdav, name: str) -> Record | None:
        path = _VOLUMES / Subpath(text=name)
        content = await webdav.get(path)
        if content is None:
            return None
        try:
            return Record.from_json(content)
        except (InvalidRequest, ValueError, KeyError, TypeError):
            raise InUse(f"{path} in the file system is no record of a volume: repair or remove it") from None


async def _make_directories(webdav: Webdav) -> None:
    for directory in (_VOLUMES, _PLACES, _DRAFTS):
        await webdav.make_directory(directory)


def _name(volume_id: str) -> Subpath:
    return Subpath(text=unique_id(volume_id))


def _is_at_its_id(record: Record) -> bool:
    return record.path.text == record.volume_id
