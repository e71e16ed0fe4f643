"""All objects of one kind, kept up to date: listed once, then watched for ever.

Each event moves the resource version that a broken watch is resumed from; bookmarks do where nothing happens. Only when
that version is too old are all objects listed again, and then what changed in between is told like any other change.
"""

import asyncio
import random
from builtins import type as _type
from collections.abc import Callable, MutableMapping
from contextlib import aclosing
from typing import Final, Generic, TypeVar

import msgspec
import structlog

from shared import log
from shared.errors import DriverError
from shared.kubernetes import Event, Gone, Kind, Kubernetes
from shared.objects import Metadata, Object
from shared.packed import Packed

T = TypeVar("T", bound=Object)

_FIRST_PAUSE: Final = 0.25  # seconds; doubled with each failure in a row
_LAST_PAUSE: Final = 8.0
_SHORT: Final = 5.0  # seconds of a watch after which the next one must wait

_log = structlog.get_logger()


class _ListMetadata(msgspec.Struct, rename="camel", gc=False):
    resource_version: str


class _List(msgspec.Struct, gc=False):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


class _Head(msgspec.Struct, gc=False):
    metadata: Metadata


class Informer(Generic[T]):
    """`on_change(old, new)` is called once for each change: (None, new), (old, new) or (old, None).

    `objects` are by `namespace/name`, or by name. `synced` is set once all of them are there. `is_current` is false
    while the API server is away: what is here may be old then. With `is_packed`, many thousand objects that are seldom
    looked at take little memory.
    """

    def __init__(  # noqa: PLR0913 - a list's selectors
        self,
        api: Kubernetes,
        kind: Kind,
        type: _type[T],  # noqa: A002 - the word msgspec itself uses
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        is_packed: bool = False,
        on_change: Callable[[T | None, T | None], None] | None = None,
    ) -> None:
        self.objects: MutableMapping[str, T] = Packed(type) if is_packed else {}
        self.synced = asyncio.Event()
        self.is_current = False
        self._api = api
        self._kind = kind
        self._decoder = msgspec.json.Decoder(type)
        self._where = {"namespace": namespace, "labels": labels, "fields": fields}
        self._on_change = on_change
        self._since = ""
        self._pause = _FIRST_PAUSE
        self._is_away = False

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except Gone:
                    _log.debug("history gone, listing again", kind=self._kind.plural)
                    self._since = ""
                except Exception as error:  # noqa: BLE001 - whatever it is, it may pass
                    self._lost(error)
                await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - only to spread
                self._pause = min(self._pause * 2, _LAST_PAUSE)
        finally:
            self.is_current = False

    async def _follow(self) -> None:
        """List if there is nothing to go on from; then hear what happens, until a watch ends too soon."""
        clock = asyncio.get_running_loop().time
        if not self._since:
            await self._list()
        while True:
            begun = clock()
            watch = self._api.watch(self._kind, since=self._since, on_open=self._found, **self._where)
            async with aclosing(watch) as events:
                async for event in events:
                    self._hear(event)
            if clock() < begun + _SHORT:
                return
            self._pause = _FIRST_PAUSE

    def _found(self) -> None:
        self.is_current, self._is_away = True, False

    def _lost(self, error: Exception) -> None:
        """Say it once, however long it lasts."""
        if not self._is_away:
            facts = {} if isinstance(error, DriverError) else {"exc_info": error}
            _log.warning("watch broken", kind=self._kind.plural, error=log.in_words(error), **facts)
        self.is_current, self._is_away = False, True

    async def _list(self) -> None:
        kept: set[str] = set()
        version = ""
        async with aclosing(self._api.pages(self._kind, **self._where)) as pages:
            async for page in pages:
                part = msgspec.json.decode(page, type=_List)
                version = part.metadata.resource_version
                for raw in part.items or ():
                    if (new := self._decoded(raw)) is not None:
                        kept.add(new.key)
                        self._put(new)
        for key in [key for key in self.objects if key not in kept]:
            self._tell(self.objects.pop(key), None)
        self._since = version
        self._pause = _FIRST_PAUSE
        self._found()
        self.synced.set()

    def _hear(self, event: Event) -> None:
        head = msgspec.json.decode(event.object, type=_Head)
        if event.type in {"ADDED", "MODIFIED"}:
            if (new := self._decoded(event.object)) is not None:
                self._put(new)
        elif event.type == "DELETED":
            name, where = head.metadata.name, head.metadata.namespace
            if (old := self.objects.pop(f"{where}/{name}" if where else name, None)) is not None:
                self._tell(old, None)
        self._since = head.metadata.resource_version
        self._pause = _FIRST_PAUSE

    def _put(self, new: T) -> None:
        old = self.objects.get(new.key)
        if old is not None and old.metadata.uid != new.metadata.uid:
            del self.objects[new.key]
            self._tell(old, None)
            old = None
        if old is None or old.metadata.resource_version != new.metadata.resource_version:
            self.objects[new.key] = new
            self._tell(old, new)

    def _tell(self, old: T | None, new: T | None) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(old, new)
        except Exception as error:  # noqa: BLE001 - one object that can't be dealt with must not stop the others
            about = new or old
            name = about.key if about else ""
            _log.error("change not dealt with", kind=self._kind.plural, object=name, exc_info=error)

    def _decoded(self, raw: msgspec.Raw) -> T | None:
        try:
            return self._decoder.decode(raw)
        except msgspec.DecodeError:
            head = msgspec.json.decode(raw, type=_Head)
            _log.error("object not understood", kind=self._kind.plural, object=head.metadata.name)
            return None
