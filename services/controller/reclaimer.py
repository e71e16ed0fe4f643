"""The other half of the provisioner: a PersistentVolume whose claim is gone loses its directory, then itself."""

from secrets import token_hex

import msgspec
import structlog

from services.controller.cluster import Cluster
from services.controller.disposal import Disposal
from services.controller.provisioning import FINALIZER, PROVISIONED_BY
from services.controller.sharing import Sharing
from services.controller.store import Store
from services.controller.used import Use, use_at, use_of
from services.controller.volumes import is_of_earlier_driver
from services.controller.worklist import Worklist
from shared import log
from shared.domain import Subpath
from shared.errors import InvalidRequest, NotFound
from shared.kubernetes import PERSISTENT_VOLUMES
from shared.objects import PersistentVolume

_log = structlog.get_logger()


class Reclaimer:
    """Looks at PersistentVolumes, and keeps the index of the directories that they use."""

    def __init__(self, cluster: Cluster, store: Store, *, workers: int) -> None:
        self._cluster = cluster
        self._used = store.used
        self._credentials = store.credentials
        self._sharing = Sharing(store)
        self._disposal = Disposal(store)
        self._list = Worklist(self._look, name="volumes to delete", workers=workers)
        cluster.listen(volume=self._volume_changed)

    async def run(self) -> None:
        """Until cancelled."""
        await self._list.run()

    def _volume_changed(self, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        if new is None:
            if old:
                self._used.forget(old.metadata.name)
            return
        if use := use_of(new, driver=self._cluster.driver):
            self._used.add(use)
        else:
            self._used.remove(new.metadata.name)
        if self._is_to_be_deleted(new) or self._is_held_for_nothing(new):
            self._list.add(new.metadata.name)

    def _is_ours(self, volume: PersistentVolume) -> bool:
        csi, by = volume.spec.csi, volume.metadata.annotations.get(PROVISIONED_BY)
        return csi is not None and csi.driver == by == self._cluster.driver

    def _is_to_be_deleted(self, volume: PersistentVolume) -> bool:
        """Its claim is gone. One that somebody is deleting without our finalizer on it is theirs."""
        metadata = volume.metadata
        is_deletable = not metadata.deletion_timestamp or FINALIZER in metadata.finalizers
        is_released = volume.status.phase == "Released"
        return self._is_ours(volume) and _is_deleted_with_claim(volume) and is_released and is_deletable

    def _is_held_for_nothing(self, volume: PersistentVolume) -> bool:
        """It has become one that is retained."""
        held = self._is_ours(volume) and FINALIZER in volume.metadata.finalizers
        return held and not _is_deleted_with_claim(volume)

    async def _look(self, name: str) -> None:
        known = self._cluster.volumes.objects.get(name)
        if not known or not (self._is_to_be_deleted(known) or self._is_held_for_nothing(known)):
            return
        with log.bound(request=token_hex(8), volume=name):
            try:
                await self._act(name)
            except Exception as error:
                self._cluster.warn(known, "VolumeFailedDelete", error)
                raise

    async def _act(self, name: str) -> None:
        """By what the API server says now: what was watched may be of the past, and this can't be undone."""
        try:
            volume = msgspec.convert(await self._cluster.api.get(PERSISTENT_VOLUMES, name), PersistentVolume)
        except NotFound:
            return
        if self._is_held_for_nothing(volume):
            await self._let_go(volume)
        elif self._is_to_be_deleted(volume):
            await self._delete(volume)

    async def _delete(self, volume: PersistentVolume) -> None:
        use = use_of(volume, driver=self._cluster.driver) or _unmountable(volume)
        ref = use.provisioner or (use.node_publish if is_of_earlier_driver(use.handle) else None)
        is_gone = False
        if ref and not self._used.is_finished(use):
            is_gone = await self._disposal.dispose(use, await self._credentials.filesystem(ref))
        if use.node_publish and use.provisioner and _holds_secret(volume):
            async with self._used.locked(use.provisioner):
                if not self._sharing.has_secret(use.provisioner, use):
                    await self._credentials.release(use.node_publish)
                await self._remove(volume)
        else:
            await self._remove(volume)
        _log.info("volume reclaimed", directory="deleted" if is_gone else "kept")

    async def _remove(self, volume: PersistentVolume) -> None:
        metadata = volume.metadata
        if FINALIZER in metadata.finalizers:
            await self._let_go(volume)
        if not metadata.deletion_timestamp:
            try:
                await self._cluster.api.delete(PERSISTENT_VOLUMES, metadata.name, uid=metadata.uid)
            except NotFound:
                return

    async def _let_go(self, volume: PersistentVolume) -> None:
        """Only as it was read: somebody may have decided to retain it."""
        others = [one for one in volume.metadata.finalizers if one != FINALIZER]
        patch = {"metadata": {"resourceVersion": volume.metadata.resource_version, "finalizers": others}}
        await self._cluster.api.patch(PERSISTENT_VOLUMES, volume.metadata.name, patch)


def _is_deleted_with_claim(volume: PersistentVolume) -> bool:
    return volume.spec.persistent_volume_reclaim_policy == "Delete"


def _holds_secret(volume: PersistentVolume) -> bool:
    return volume.spec.csi is not None and volume.spec.csi.volume_attributes.get("secretFinalizer") == "true"


def _unmountable(volume: PersistentVolume) -> Use:
    """Its record knows where it is."""
    if volume.spec.csi is None:
        raise InvalidRequest("it is no volume of a CSI driver")
    return use_at(Subpath(), volume, volume.spec.csi)
