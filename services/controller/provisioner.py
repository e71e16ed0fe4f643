"""The built-in provisioner: a claim that waits for this driver gets its directory and its PersistentVolume.

Each step may be the last before a crash: the volume is made under a name that is the claim's own, then the
PersistentVolume is POSTed, and whoever comes next does the same again. A claim that is deleted before it has one has
its volume taken away again by who made it.
"""

from secrets import token_hex
from typing import Final

import msgspec
import structlog

from services.controller import provisioning
from services.controller.cluster import Cluster
from services.controller.disposal import Disposal
from services.controller.provisioning import PROVISIONED_BY, Plan
from services.controller.sharing import Sharing
from services.controller.store import Store
from services.controller.used import Use
from services.controller.worklist import Worklist, within
from shared import log
from shared.api.juicefs.v1 import VolumeCreated
from shared.errors import AlreadyExists, NotFound
from shared.filesystem import Filesystem
from shared.kubernetes import NODES, PERSISTENT_VOLUMES
from shared.metrics import Metrics
from shared.objects import Claim, PersistentVolume, StorageClass

_SECONDS: Final = 90.0
_log = structlog.get_logger()


class Provisioner:
    """Looks at claims; what it knows of them is what `cluster` watches."""

    def __init__(self, cluster: Cluster, store: Store, *, metrics: Metrics, workers: int) -> None:
        self._cluster = cluster
        self._volumes = store.volumes
        self._credentials = store.credentials
        self._used = store.used
        self._say = store.say
        self._sharing = Sharing(store)
        self._disposal = Disposal(store)
        self._metrics = metrics
        self._begun: dict[str, Plan] = {}
        self._asked: set[str] = set()
        self._made: set[str] = set()  # PersistentVolumes that the watch does not show yet
        self._list = Worklist(self._look, name="claims to provision", workers=workers)
        cluster.listen(claim=self._claim_changed, volume=self._volume_changed, storage_class=self._class_changed)

    async def run(self) -> None:
        """Until cancelled."""
        await self._list.run()

    def _claim_changed(self, old: Claim | None, new: Claim | None) -> None:
        claim = new or old
        if not claim:
            return
        if new and self._is_asked(new):
            self._asked.add(claim.key)
        else:
            self._asked.discard(claim.key)
        if claim.key in self._begun or claim.key in self._asked:
            self._list.add(claim.key)

    def _volume_changed(self, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        """A claim whose volume vanished before it was bound gets another."""
        if volume := new or old:
            self._made.discard(volume.metadata.name)
        reference = old.spec.claim_ref if old and not new else None
        claim = self._cluster.claims.objects.get(f"{reference.namespace}/{reference.name}") if reference else None
        if claim and self._is_asked(claim):
            self._list.add(claim.key)

    def _class_changed(self, old: StorageClass | None, new: StorageClass | None) -> None:
        """A class can't be changed, but be deleted and made anew."""
        name = new.metadata.name if new else ""
        for key in self._asked if name else ():
            claim = self._cluster.claims.objects.get(key)
            if claim and provisioning.class_name(claim) == name:
                self._list.add(key)

    def _is_asked(self, claim: Claim) -> bool:
        return provisioning.is_asked(claim, driver=self._cluster.driver)

    def _has_volume(self, claim: Claim) -> bool:
        """It is only to be bound."""
        name = provisioning.volume_name(claim)
        volume = self._cluster.volumes.objects.get(name)
        return name in self._made or bool(volume and _is_for(claim, volume, driver=self._cluster.driver))

    async def _look(self, key: str) -> None:
        claim, begun = self._cluster.claims.objects.get(key), self._begun.get(key)
        if begun and (not claim or not self._is_asked(claim) or claim.metadata.uid != begun.claim.metadata.uid):
            await self._undo(key, begun)
        if not claim or not self._is_asked(claim) or self._has_volume(claim):
            return
        with log.bound(request=token_hex(8), claim=key, volume=provisioning.volume_name(claim)):
            try:
                async with within(_SECONDS):
                    await self._provision(key, claim)
            except Exception as error:
                self._metrics.provision_errors.inc()
                self._cluster.warn(claim, "ProvisioningFailed", error)
                raise

    async def _provision(self, key: str, claim: Claim) -> None:
        name = provisioning.class_name(claim)
        storage_class = self._cluster.classes.objects.get(name)
        if storage_class is None:
            raise NotFound(f"StorageClass {name} does not exist: create it, or name another one in the claim")
        if storage_class.provisioner != self._cluster.driver or provisioning.waits_for_pod(claim, storage_class):
            return
        plan = await self._plan(claim, storage_class)
        if plan.name in self._cluster.volumes.objects:
            raise _taken(plan)
        self._cluster.tell(claim, "Provisioning", f"making volume {plan.name}")
        fs = await self._credentials.filesystem(plan.provisioner)
        self._begun[key] = plan
        capacity = await self._make(plan, fs)
        self._begun.pop(key, None)
        if plan.name not in self._cluster.volumes.objects:
            self._made.add(plan.name)
        self._say(VolumeCreated(capacity_bytes=capacity), volume_id=plan.name)
        self._cluster.tell(claim, "ProvisioningSucceeded", f"made volume {plan.name} in directory {plan.path}")
        _log.info("claim provisioned", path=str(plan.path), capacity=capacity)

    async def _plan(self, claim: Claim, storage_class: StorageClass) -> Plan:
        chosen = provisioning.selected_node(claim)
        if not chosen or not provisioning.needs_node(storage_class):
            return provisioning.plan(claim, storage_class)
        node = await self._cluster.api.get(NODES, chosen)
        return provisioning.plan(claim, storage_class, node=node)

    async def _make(self, plan: Plan, fs: Filesystem) -> int:
        """Directory, then PersistentVolume. Others see the directory in use from the start."""
        use = _use(plan)
        async with self._used.locked(plan.path):
            await self._sharing.check_new(use, fs)
            self._used.add(use)
            try:
                made = await self._volumes.create(fs, plan.name, path=plan.path, required=plan.required, limit=0)
                if plan.is_secret_held:
                    await self._credentials.hold(plan.node_publish)
                await self._post(plan, made.capacity)
            except BaseException:
                if plan.name not in self._cluster.volumes.objects:
                    self._used.remove(plan.name)
                raise
        return made.capacity

    async def _post(self, plan: Plan, capacity: int) -> None:
        try:
            await self._cluster.api.create(
                PERSISTENT_VOLUMES, plan.manifest(capacity=capacity, driver=self._cluster.driver)
            )
        except AlreadyExists:
            existing = await self._cluster.api.get(PERSISTENT_VOLUMES, plan.name)
            if not _is_for(plan.claim, msgspec.convert(existing, PersistentVolume), driver=self._cluster.driver):
                raise _taken(plan) from None

    async def _undo(self, key: str, plan: Plan) -> None:
        """The claim went before it had a PersistentVolume; where it has one, that one's deletion deletes the volume."""
        try:
            await self._cluster.api.get(PERSISTENT_VOLUMES, plan.name)
        except NotFound:
            fs = await self._credentials.filesystem(plan.provisioner)
            is_gone = await self._disposal.dispose(_use(plan), fs, is_kept=not plan.is_deleted_with_claim)
            _log.info("claim gone, volume taken back", claim=key, volume=plan.name, directory_deleted=is_gone)
        if self._begun.get(key) is plan:
            del self._begun[key]


def _is_for(claim: Claim, volume: PersistentVolume, *, driver: str) -> bool:
    by, reference = volume.metadata.annotations.get(PROVISIONED_BY), volume.spec.claim_ref
    return by == driver and reference is not None and reference.uid == claim.metadata.uid


def _taken(plan: Plan) -> AlreadyExists:
    return AlreadyExists(f"PersistentVolume {plan.name} exists, and was not made for this claim: delete it")


def _use(plan: Plan) -> Use:
    return Use(
        name=plan.name,
        handle=plan.name,
        path=plan.path,
        storage_class=plan.storage_class.metadata.name,
        is_provisioned=True,
        provisioner=plan.provisioner,
        node_publish=plan.node_publish,
    )
