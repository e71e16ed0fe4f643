"""The targets: binds of clients' mounts where the orchestrator wants them. Publish, unpublish, and their proof."""

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.node.bindings import Bindings
from services.node.clients import Clients, Wanted
from services.node.mounts import Mounts
from services.node.probe import Probes
from shared import mounter
from shared.api.juicefs.v1 import MountIdle, TargetBound, TargetRebound, TargetUnbound
from shared.domain import TargetPath
from shared.errors import AlreadyExists, Busy, DriverError, InUse, InvalidRequest, NotReady
from shared.metrics import Metrics
from shared.mounttable import MountEntry, MountTable
from shared.settings import is_mount_name, unique_id
from shared.threads import in_thread

log = structlog.get_logger()

FIND_TIMEOUT: Final = 28.0
"""Seconds that a publish waits for a client: promise 10 allows 30 in all."""
_MOST_LAYERS: Final = 1000
_LOOKUP_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One volume at one target; the only one of this volume if it is `exclusive`."""

    wanted: Wanted
    target: TargetPath
    read_only: bool
    exclusive: bool = False


class Targets:
    """Binds and unbinds, one call at a time for each target; every answer is read back from the mount table."""

    def __init__(
        self,
        *,
        table: MountTable,
        mounts: Mounts,
        bindings: Bindings,
        clients: Clients,
        probes: Probes,
        metrics: Metrics,
    ) -> None:
        self._table = table
        self._mounts = mounts
        self._clients = clients
        self._probes = probes
        self._bindings = bindings
        self._say = mounts.say
        self._metrics = metrics
        self._claimed: set[str] = set()

    @contextmanager
    def claim(self, path: str) -> Iterator[None]:
        """Work on this target alone.

        Raises:
            Busy: another call does.
        """
        if path in self._claimed:
            raise Busy(f"another call works on {path}")
        self._claimed.add(path)
        try:
            yield
        finally:
            self._claimed.discard(path)

    async def publish(self, publication: Publication) -> None:
        """Bind the volume at the target; a target that has it already is left as it is.

        Raises:
            AlreadyExists: the target holds another volume, or this one with another access.
            InUse: a foreign mount; or the volume, which is to have one target only, has another.
        """
        self._refuse_inside(str(publication.target))
        with self.claim(str(publication.target)):
            if await self._is_published(publication):
                return
            started = time.perf_counter()
            async with self._clients.find(publication.wanted, timeout=FIND_TIMEOUT) as source:
                found = time.perf_counter()
                name = Path(source.mount_point).name
                self._require_only(publication)
                self._bindings.note(str(publication.target), name)
                self._bind(publication, source)
        self._metrics.publish_phase.labels("find").observe(found - started)
        self._metrics.publish_phase.labels("bind").observe(time.perf_counter() - found)
        self._say(
            TargetBound(
                target=str(publication.target),
                read_only=publication.read_only,
                pod_namespace=publication.wanted.workload.namespace,
                pod_name=publication.wanted.workload.name,
            ),
            volume_id=publication.wanted.volume_id,
            mount=name,
        )

    def _refuse_inside(self, path: str) -> None:
        """A target below a target would be looked up by a client, and made in a tenant's volume."""
        if self._table.is_inside_client(path):
            raise InvalidRequest("target_path lies inside a volume")

    async def _is_published(self, publication: Publication) -> bool:
        """True if the target is right as it is; what is dead there is taken off."""
        path = str(publication.target)
        while (entry := self._table.top(path)) is not None:
            if not entry.is_juicefs:
                raise InUse(f"{path} has a foreign mount ({entry.fs_type}): unmount it first")
            if await self._probes.is_dead(entry):
                mounter.unmount(path)
                continue
            if not is_mount_name(self._bindings.name(path), unique=unique_id(publication.wanted.volume_id)):
                raise AlreadyExists(f"{path} has another volume: unpublish it first")
            if entry.is_read_only != publication.read_only:
                raise AlreadyExists(f"{path} has the volume with another access (read-only or not)")
            return True
        return False

    def _require_only(self, publication: Publication) -> None:
        """CSI spec, NodePublishVolume: SINGLE_NODE_SINGLE_WRITER is one target path."""
        if not publication.exclusive:
            return
        volume = publication.wanted.volume_id
        for name in self._mounts.names(unique_id(volume)):
            for target in self._bindings.targets(name) - {str(publication.target)}:
                if self._table.top(target) is not None:
                    raise InUse(f"volume {volume} is for one workload only, and {target} has it: unpublish it there")

    def _bind(self, publication: Publication, source: MountEntry) -> None:
        """No await in here: what was found can't be closed before it is bound."""
        path = str(publication.target)
        with mounter.open_directory(publication.target, create=True) as directory:
            mounter.bind(source, directory, read_only=publication.read_only)
        top = self._table.top(path)
        if top is None or (top.device, top.root, top.is_read_only) != (
            source.device,
            source.root,
            publication.read_only or source.is_read_only,
        ):
            with suppress(OSError):
                mounter.unmount(path)
            raise DriverError(f"{path} does not show the volume after the mount: see the node's mount table")

    async def rebind(self, bind: MountEntry, living: MountEntry, *, mount: str, is_copied: bool = False) -> None:
        """Put the living client's mount in the place of a dead one; what answers, or is worked on, is left alone.

        A target that `is_copied` into other mount namespaces, as a container's is, keeps the dead one beneath.

        Raises:
            DriverError: the mount table does not show it afterwards.
        """
        path = bind.mount_point
        with suppress(Busy, NotReady), self.claim(path):
            # What was true when the caller looked may have changed since: no await after these.
            if (
                not await self._probes.is_dead(bind)
                or self._table.top(path) != bind
                or self._mounts.mounted(mount) != living
            ):
                return
            if [layer.device for layer in self._table.at(path)[-2:-1]] == [living.device]:
                mounter.unmount(path)  # a kill of ours came before the dead one was taken off
            else:
                await self._replace(self._lowest(bind) if is_copied else bind, living, is_copied=is_copied)
            top = self._table.top(path)
            if top is None or top.device != living.device:
                raise DriverError(f"{path} does not show the living client's mount")
            self._metrics.heals.labels("rebind").inc()
            self._say(TargetRebound(target=path), mount=mount)

    def _lowest(self, bind: MountEntry) -> MountEntry:
        """The dead mount to replace: of several that healing laid upon each other the first, which was copied."""
        while len(layers := self._table.at(bind.mount_point)) > 1:
            mounter.unmount(bind.mount_point)
            bind = layers[-2]
        return bind

    async def _replace(self, dead: MountEntry, living: MountEntry, *, is_copied: bool) -> None:
        replacing = partial(mounter.replace, dead, living, is_copied=is_copied)
        if dead.root == living.root:
            replacing()
        else:
            async with asyncio.timeout(_LOOKUP_TIMEOUT):
                await in_thread(replacing, name=f"rebind {dead.mount_point}")

    async def answers(self, entry: MountEntry) -> bool:
        """True if the client of this mount is alive and well."""
        with suppress(NotReady):
            await self._probes.ask(entry)
            return True
        return False

    def unpublish(self, target: TargetPath, volume_id: str) -> None:
        """Take every layer off the target and remove its directory; one that is not there is fine.

        Raises:
            DriverError: something is still mounted there.
        """
        path = str(target)
        self._refuse_inside(path)
        with self.claim(path):
            try:
                with mounter.open_directory(target, create=False):
                    pass
            except FileNotFoundError:
                self._bindings.forget(path)
                return
            names = self._names(path)
            self._unmount(path)
            if self._table.top(path) is not None:
                raise DriverError(f"{path} is still mounted although the kernel said otherwise")
            self._bindings.forget(path)
            _remove(path)
        for name in names:
            self._say(TargetUnbound(target=path), volume_id=volume_id, mount=name)
            if not self._mounts.binds(name):
                self._say(MountIdle(), volume_id=volume_id, mount=name)

    def _names(self, path: str) -> set[str]:
        """The clients that the target's layers are of: by our note, or by the device of a bind that we did not make."""
        if name := self._bindings.name(path):
            return {name}
        devices = {entry.device for entry in self._table.at(path)}
        return {name for name, entry in self._mounts.present().items() if entry.device in devices}

    def _unmount(self, path: str) -> None:
        """All layers, top first."""
        for _ in range(_MOST_LAYERS):
            if self._table.top(path) is None:
                return
            try:
                mounter.unmount(path)
            except OSError as error:
                raise DriverError(f"can't unmount {path}: {error.strerror}") from error


def _remove(path: str) -> None:
    """Only rmdir: a directory that holds something is left alone, and said so."""
    try:
        Path(path).rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise DriverError(f"can't remove {path}: {error.strerror}") from error
        log.warning("target directory holds files although nothing is mounted there; left as it is", target=path)
