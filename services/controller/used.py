"""Which directories the PersistentVolumes use: an index, kept from a watch, so that nothing is listed twice."""

import weakref
from asyncio import Lock
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from sys import intern

from services.controller.provisioning import DELETION_SECRET, PROVISIONED_BY
from services.controller.templates import SECRET_PREFIX
from shared import settings
from shared.domain import Subpath
from shared.errors import InvalidRequest
from shared.objects import CsiSource, PersistentVolume
from shared.secret_ref import SecretRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A PersistentVolume, the directory it uses, and the Secrets that say of which file system."""

    name: str
    uid: str = ""
    handle: str
    path: Subpath
    storage_class: str = ""
    is_provisioned: bool = False
    provisioner: SecretRef | None = None
    node_publish: SecretRef | None = None

    @property
    def secrets(self) -> set[SecretRef]:
        return {ref for ref in (self.provisioner, self.node_publish) if ref}


class Used:
    """The uses of one driver's volumes, by path and by handle; `locked` lets one at a time at a thing."""

    def __init__(self) -> None:
        self._uses: dict[str, Use] = {}
        # Names by key: nearly always one, and a set of one takes four times what a tuple does.
        self._at: dict[str, tuple[str, ...]] = {}
        self._inside: dict[str, tuple[str, ...]] = {}
        self._handles: dict[str, tuple[str, ...]] = {}
        self._finished: dict[str, str] = {}
        self._locks: weakref.WeakValueDictionary[tuple[str, str], Lock] = weakref.WeakValueDictionary()

    def __iter__(self) -> Iterator[Use]:
        return iter(self._uses.values())

    def add(self, use: Use) -> None:
        if self._uses.get(use.name) == use and not self.is_finished(use):
            return
        self.remove(use.name)
        if self.is_finished(use):
            return
        self._uses[use.name] = use
        for index, key in self._places(use):
            index[key] = (*index.get(key, ()), use.name)

    def remove(self, name: str) -> None:
        """No error if there is none."""
        if use := self._uses.pop(name, None):
            for index, key in self._places(use):
                rest = tuple(other for other in index[key] if other != name)
                if rest:
                    index[key] = rest
                else:
                    del index[key]

    def finish(self, use: Use) -> None:
        """It uses nothing any more, though its PersistentVolume may be seen for a while."""
        self.remove(use.name)
        self._finished[use.name] = use.uid

    def is_finished(self, use: Use) -> bool:
        return self._finished.get(use.name) == use.uid

    def forget(self, name: str) -> None:
        """Its PersistentVolume is gone."""
        self.remove(name)
        self._finished.pop(name, None)

    def at(self, path: Subpath) -> list[Use]:
        """Those that use exactly this directory."""
        return self._named(self._at, path.text)

    def inside(self, path: Subpath) -> list[Use]:
        """Those whose directory lies in this one."""
        return self._named(self._inside, path.text)

    def around(self, path: Subpath) -> list[Use]:
        """Those whose directory holds this one, but those that use a whole file system: these look, and own nothing."""
        return [use for parent in _parents(path) for use in self._named(self._at, parent)]

    def of_handle(self, handle: str) -> list[Use]:
        return self._named(self._handles, handle)

    @asynccontextmanager
    async def locked(self, thing: Subpath | SecretRef) -> AsyncIterator[None]:
        async with self._locks.setdefault((type(thing).__name__, str(thing)), Lock()):
            yield

    def _named(self, index: dict[str, tuple[str, ...]], key: str) -> list[Use]:
        return [self._uses[name] for name in sorted(index.get(key, ()))]

    def _places(self, use: Use) -> Iterator[tuple[dict[str, tuple[str, ...]], str]]:
        yield self._at, use.path.text
        yield self._handles, use.handle
        for parent in _parents(use.path):
            yield self._inside, parent


def use_of(volume: PersistentVolume, *, driver: str) -> Use | None:
    """What a PersistentVolume uses; None for another driver's, and for what nobody could mount as it is written."""
    csi = volume.spec.csi
    if csi is None or csi.driver != driver:
        return None
    try:
        wanted = settings.parse(
            volume_id=csi.volume_handle,
            context=csi.volume_attributes,
            mount_options=volume.spec.mount_options,
            credentials="unread",
        )
    except InvalidRequest:
        return None
    return use_at(wanted.subdir, volume, csi)


def use_at(path: Subpath, volume: PersistentVolume, csi: CsiSource) -> Use:
    """The same, of a directory that is known."""
    annotations, publish = volume.metadata.annotations, csi.node_publish_secret_ref
    named = [annotations.get(f"{DELETION_SECRET}-{part}", "") for part in ("namespace", "name")]
    if not all(named):
        named = [
            csi.volume_attributes.get(f"{SECRET_PREFIX}provisioner-secret-{part}", "") for part in ("namespace", "name")
        ]
    return Use(
        name=intern(volume.metadata.name),
        uid=volume.metadata.uid,
        handle=intern(csi.volume_handle),
        path=Subpath(text=intern(path.text)),
        storage_class=intern(volume.spec.storage_class_name),
        is_provisioned=PROVISIONED_BY in annotations,
        provisioner=_secret(*named) if all(named) else None,
        node_publish=_secret(publish.namespace, publish.name) if publish else None,
    )


@lru_cache(maxsize=1024)
def _secret(namespace: str, name: str) -> SecretRef:
    """One object for what thousands of volumes name."""
    return SecretRef(namespace=namespace, name=name)


def _parents(path: Subpath) -> Iterator[str]:
    """Every directory above, but the root."""
    for parent in PurePosixPath(path.text).parents:
        if parent.name:
            yield str(parent)
