"""Volumes made, grown and deleted inside file systems, so that any step may be the last one before a crash.

Create: record, directory and quota, read back. Expand: note, quota, read back. Delete: directory, seen gone, and
notes; record. A call that was cut off between two steps is finished by the same call, or undone by the opposite one,
by whichever controller gets it.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from services.controller.gateway import Gateways
from services.controller.quota import Quota
from services.controller.records import Record, Records, require_own
from services.controller.webdav import Webdav
from shared.diagnosis import META_NOT_FORMATTED
from shared.domain import GIB, Subpath, capacity_in_range
from shared.errors import AlreadyExists, Busy, CommandFailed, InUse, NotFound, NotReady, OutOfRange
from shared.filesystem import Filesystem
from shared.formatting import ensure_formatted
from shared.juicefs import Juicefs
from shared.runner import run

_T = TypeVar("_T")
_S = TypeVar("_S")

_FORMAT_SECONDS: Final = 20.0
_QUOTA_SECONDS: Final = 20.0
_TRIES: Final = 5
_COMMANDS: Final = 8
"""At once in one file system: each takes 75 MiB, and a burst of claims is no reason to take them all."""
# A directory that the earlier driver made, which kept no records (behaviour.md 1.5, but the whole name).
_EARLIER = re.compile(r"pvc-\w{8}(-\w{4}){3}-\w{12}", re.ASCII)


def is_of_earlier_driver(volume_id: str) -> bool:
    """True for ids that this kind of driver gives, also without a record; static volumes have others."""
    return _EARLIER.fullmatch(volume_id) is not None


class Volumes:
    """The volumes of all file systems. Two calls for one volume at once: the second is Busy."""

    def __init__(self, *, juicefs: Juicefs, gateways: Gateways) -> None:
        self._juicefs = juicefs
        self._gateways = gateways
        self._records: defaultdict[str, Records] = defaultdict(Records)
        self._formats: dict[str, asyncio.Task[None]] = {}
        self._claims: set[tuple[str, str]] = set()
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, _COMMANDS))

    async def create(self, fs: Filesystem, volume_id: str, *, path: Subpath, required: int, limit: int) -> Record:
        """The volume is there: its directory at `path`, its quota as the file system itself says. Sizes in bytes.

        Raises:
            AlreadyExists: it was created with another path, or a capacity outside the limits.
            InvalidRequest, OutOfRange: no such volume can be. CommandFailed, NotReady: the client's own words.
        """
        capacity = capacity_in_range(required=required, limit=limit)
        wanted = Record(volume_id=volume_id, path=require_own(path), capacity=capacity)
        with self._claim(fs, volume_id), self._formatted_again(fs):
            await self._ensure_formatted(fs)
            async with self._gateways.open(fs) as webdav:
                records = self._records[fs.credentials]
                existing, grown = await _together(records.get(webdav, volume_id), records.grown(webdav, volume_id))
                if existing:
                    record = replace(existing, capacity=max(existing.capacity, grown))
                else:
                    record = await records.add(webdav, wanted)
                if record.path != path:
                    raise AlreadyExists(f"volume {volume_id} exists, at another path")
                if record.capacity < required or (limit and record.capacity > limit):
                    raise AlreadyExists(f"volume {volume_id} exists, with a capacity of {record.capacity} bytes")
                await self._ensure_there(fs, webdav, record, is_new=existing is None)
        return record

    async def delete(self, fs: Filesystem, volume_id: str) -> bool:
        """The volume is gone; True if it was there. What was not created by a driver of this kind is left alone.

        Raises:
            InUse: another volume lies in its directory. CommandFailed, NotReady: the client's own words.
        """
        with self._claim(fs, volume_id):
            try:
                async with self._gateways.open(fs) as webdav:
                    return await self._delete(fs, webdav, volume_id)
            except CommandFailed as error:
                if error.reason == META_NOT_FORMATTED:
                    return False
                raise

    async def forget(self, fs: Filesystem, volume_id: str) -> None:
        """The volume is no more, but its directory stays as it is: somebody else has it too."""
        with self._claim(fs, volume_id):
            async with self._gateways.open(fs) as webdav:
                records = self._records[fs.credentials]
                if record := await records.get(webdav, volume_id):
                    await records.remove(webdav, record)

    async def expand(self, fs: Filesystem, volume_id: str, *, required: int, limit: int) -> int:
        """The capacity in bytes that the volume has now, at least `required`; it never gets smaller.

        Raises:
            NotFound: static volumes too, which have no capacity of their own. OutOfRange: it is above `limit`.
        """
        wanted = capacity_in_range(required=required, limit=limit)
        with self._claim(fs, volume_id):
            async with self._gateways.open(fs) as webdav:
                record = await self._find(fs, webdav, volume_id)
                if record is None:
                    raise NotFound(f"volume {volume_id} was not created by this driver: its capacity can't be changed")
                capacity = await self._grow(fs, webdav, record, wanted=wanted, limit=limit)
        if limit and capacity > limit:
            raise OutOfRange(f"volume {volume_id} has {capacity} bytes already: above limit_bytes")
        return capacity

    async def _grow(self, fs: Filesystem, webdav: Webdav, record: Record, *, wanted: int, limit: int) -> int:
        """The capacity in bytes that the volume has then. One that is above `limit` is left as it is."""
        records, volume_id = self._records[fs.credentials], record.volume_id
        shown, grown = await _together(self._quota(fs, record.path), records.grown(webdav, volume_id))
        capacity = max(record.capacity, grown)
        if shown.exceeds(max(capacity, wanted)):  # by hand, or by the earlier driver: nobody knows it better
            return shown.capacity
        if limit and capacity > limit:
            return capacity
        if wanted > capacity:
            await records.grow(webdav, volume_id, wanted)
        capacity = max(capacity, wanted)
        # Also when it was large enough: who noted that may have been cut off before the quota.
        for _ in range(_TRIES):
            await self._set_quota(fs, record.path, capacity)
            shown, grown = await _together(self._quota(fs, record.path), records.grown(webdav, volume_id))
            if grown <= capacity and shown.may_be(capacity):
                return capacity
            capacity = max(capacity, grown)  # another controller works on it, too
        raise NotReady(f"volume {volume_id}: the file system does not show the new capacity: try again")

    async def get(self, fs: Filesystem, volume_id: str) -> Record | None:
        """The volume, if a driver of this kind created it."""
        try:
            async with self._gateways.open(fs) as webdav:
                return await self._find(fs, webdav, volume_id)
        except CommandFailed as error:
            if error.reason == META_NOT_FORMATTED:
                return None
            raise

    async def _ensure_there(self, fs: Filesystem, webdav: Webdav, record: Record, *, is_new: bool) -> None:
        if is_new or not await self._is_there(fs, webdav, record):
            await self._set_quota(fs, record.path, record.capacity)
            if not await self._is_there(fs, webdav, record):
                raise NotReady(f"volume {record.volume_id}: the file system does not show its directory: try again")

    async def _is_there(self, fs: Filesystem, webdav: Webdav, record: Record) -> bool:
        """It may have grown since it was created."""
        if not await webdav.is_directory(record.path):
            return False
        if not record.capacity:
            return True
        quota = await self._quota(fs, record.path)
        return quota.may_be(record.capacity) or quota.exceeds(record.capacity)

    async def _delete(self, fs: Filesystem, webdav: Webdav, volume_id: str) -> bool:
        records = self._records[fs.credentials]
        record, places = await _together(self._find(fs, webdav, volume_id), records.places(webdav))
        if record is None:
            await _together(records.remove_place(webdav, volume_id), records.forget_grown(webdav, volume_id))
            return False
        others = await records.overlapping(webdav, record, places=places)
        inside = next((other for other in others if _holds(record, other)), None)
        if inside:
            raise InUse(f"volume {inside.volume_id} lies in volume {volume_id}: delete that one first")
        # A directory that another volume has too, or holds, is deleted with that one (behaviour.md 1.11).
        await _together(
            _delete_directory(webdav, record.path, is_shared=bool(others)), records.forget_grown(webdav, volume_id)
        )
        await records.remove(webdav, record)
        return True

    async def _find(self, fs: Filesystem, webdav: Webdav, volume_id: str) -> Record | None:
        record = await self._records[fs.credentials].get(webdav, volume_id)
        if record is None and is_of_earlier_driver(volume_id):
            path = Subpath(text=volume_id)
            return Record(volume_id=volume_id, path=path, capacity=0) if await webdav.is_directory(path) else None
        return record

    async def _quota(self, fs: Filesystem, path: Subpath) -> Quota:
        async with self._turns[fs.credentials]:
            return Quota.parse(await run(self._juicefs.quota_get(fs, path), timeout=_QUOTA_SECONDS))

    async def _set_quota(self, fs: Filesystem, path: Subpath, capacity: int) -> None:
        async with self._turns[fs.credentials]:
            await run(self._juicefs.quota_set(fs, path, gib=capacity // GIB), timeout=_QUOTA_SECONDS)

    async def _ensure_formatted(self, fs: Filesystem) -> None:
        """Once for these credentials in this program's life; callers at the same time share one run."""
        task = self._formats.get(fs.credentials)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(ensure_formatted(self._juicefs, fs, timeout=_FORMAT_SECONDS))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._formats[fs.credentials] = task
        await asyncio.shield(task)

    @contextmanager
    def _formatted_again(self, fs: Filesystem) -> Iterator[None]:
        """A file system that is gone, though it was there, is made by the next call."""
        try:
            yield
        except CommandFailed as error:
            if error.reason == META_NOT_FORMATTED:
                self._formats.pop(fs.credentials, None)
            raise

    @contextmanager
    def _claim(self, fs: Filesystem, volume_id: str) -> Iterator[None]:
        claim = (fs.credentials, volume_id)
        if claim in self._claims:
            raise Busy(f"another call works on volume {volume_id}: try again when it has ended")
        self._claims.add(claim)
        try:
            yield
        finally:
            self._claims.discard(claim)


def _holds(outer: Record, inner: Record) -> bool:
    return inner.path.text.startswith(f"{outer.path.text}/")


async def _delete_directory(webdav: Webdav, path: Subpath, *, is_shared: bool) -> None:
    """The one recursive delete of this driver (promise 4); the directory's quota goes with it."""
    if is_shared:
        return
    await webdav.delete_tree(require_own(path))
    if await webdav.is_there(path):
        raise NotReady(f"{path} is still there: try again")


async def _together(one: Coroutine[None, None, _T], other: Coroutine[None, None, _S]) -> tuple[_T, _S]:
    """What both return. When one fails the other is cut off, so that nothing goes on after the call."""
    try:
        async with asyncio.TaskGroup() as tasks:
            first, second = tasks.create_task(one), tasks.create_task(other)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return first.result(), second.result()
