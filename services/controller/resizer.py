"""The built-in resizer: a claim that asks for more than it has gets it, while it is used.

What Kubernetes expects of one (KEP-1790): the claim says in its status what is tried and how it goes, the
PersistentVolume grows first, the claim's capacity last. That a StorageClass allows it is the API server's business.
"""

from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final

import msgspec
import structlog

from services.controller.cluster import Cluster
from services.controller.store import Store
from services.controller.worklist import Worklist, within
from shared import log, quantity
from shared.api.juicefs.v1 import VolumeExpanded
from shared.errors import DriverError, InvalidRequest, NotFound, OutOfRange
from shared.kubernetes import CLAIMS, PERSISTENT_VOLUMES
from shared.objects import Claim, PersistentVolume
from shared.secret_ref import SecretRef

_SECONDS: Final = 60.0
_IN_PROGRESS: Final = "ControllerResizeInProgress"
_INFEASIBLE: Final = "ControllerResizeInfeasible"
_OURS: Final = frozenset({"Resizing", "ControllerResizeError"})
"""The conditions of a claim that a controller's part of an expansion sets and takes away."""
_log = structlog.get_logger()


class Resizer:
    """Looks at claims; what it knows of them is what `cluster` watches."""

    def __init__(self, cluster: Cluster, store: Store, *, workers: int) -> None:
        self._cluster = cluster
        self._volumes = store.volumes
        self._credentials = store.credentials
        self._say = store.say
        self._list = Worklist(self._look, name="claims to expand", workers=workers)
        cluster.listen(claim=self._claim_changed, volume=self._volume_changed)

    async def run(self) -> None:
        """Until cancelled."""
        await self._list.run()

    def _claim_changed(self, old: Claim | None, new: Claim | None) -> None:
        if new and (not old or _size_of(old) != _size_of(new)) and self._may_grow(new):
            self._list.add(new.key)

    def _volume_changed(self, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        """A claim may be known before its volume is."""
        reference = new.spec.claim_ref if new and not old else None
        claim = self._cluster.claims.objects.get(f"{reference.namespace}/{reference.name}") if reference else None
        if claim and self._may_grow(claim):
            self._list.add(claim.key)

    def _may_grow(self, claim: Claim) -> bool:
        return bool(
            claim.status.phase == "Bound" and claim.spec.volume_name and _size_of(claim)[0] != _size_of(claim)[1]
        )

    async def _look(self, key: str) -> None:
        claim = self._cluster.claims.objects.get(key)
        volume = self._cluster.volume_of(claim) if claim and self._may_grow(claim) else None
        if not claim or not volume or not volume.spec.csi or volume.spec.csi.driver != self._cluster.driver:
            return
        with log.bound(request=token_hex(8), claim=key, volume=volume.spec.csi.volume_handle):
            try:
                wanted, has = (quantity.whole(size, field="the size of the claim") for size in _size_of(claim))
                if wanted > has:
                    await self._grow(claim, volume, wanted)
            except Exception as error:
                self._cluster.warn(claim, "VolumeResizeFailed", error)
                raise

    async def _grow(self, claim: Claim, volume: PersistentVolume, wanted: int) -> None:
        asked = {"allocatedResources": {"storage": _size_of(claim)[0]}}
        begun = {**asked, "allocatedResourceStatuses": {"storage": _IN_PROGRESS}}
        claim = await self._report(claim, {**begun, "conditions": _conditions(claim, Resizing="")})
        self._cluster.tell(claim, "Resizing", f"making volume {volume.metadata.name} larger")
        try:
            async with within(_SECONDS):
                capacity = await self._expand(volume, wanted)
        except DriverError as error:
            is_final = isinstance(error, InvalidRequest | OutOfRange | NotFound)
            said = {"allocatedResourceStatuses": {"storage": _INFEASIBLE}} if is_final else {}
            conditions = _conditions(claim, Resizing="", ControllerResizeError=str(error))
            await self._report(claim, {**said, "conditions": conditions})
            raise
        await self._widen(volume, capacity)
        size = quantity.of_bytes(capacity)
        done = {"capacity": {"storage": size}, "allocatedResourceStatuses": None, "conditions": _conditions(claim)}
        await self._report(claim, done)
        self._say(VolumeExpanded(capacity_bytes=capacity), volume_id=volume.metadata.name)
        self._cluster.tell(claim, "VolumeResizeSuccessful", f"volume {volume.metadata.name} has {size} now")
        _log.info("claim expanded", capacity=capacity)

    async def _expand(self, volume: PersistentVolume, wanted: int) -> int:
        csi = volume.spec.csi
        ref = csi.controller_expand_secret_ref if csi else None
        if csi is None or ref is None:
            raise InvalidRequest(
                f"PersistentVolume {volume.metadata.name} has no controllerExpandSecretRef: set "
                "csi.storage.k8s.io/controller-expand-secret-name and -namespace in the StorageClass before it is made"
            )
        fs = await self._credentials.filesystem(SecretRef(namespace=ref.namespace, name=ref.name))
        return await self._volumes.expand(fs, csi.volume_handle, required=wanted, limit=0)

    async def _widen(self, volume: PersistentVolume, capacity: int) -> None:
        if quantity.whole(volume.spec.capacity.get("storage", "0"), field="its capacity") < capacity:
            patch = {"spec": {"capacity": {"storage": quantity.of_bytes(capacity)}}}
            await self._cluster.api.patch(PERSISTENT_VOLUMES, volume.metadata.name, patch)

    async def _report(self, claim: Claim, status: dict[str, Any]) -> Claim:
        """Only over what was read, since conditions are replaced as a whole."""
        metadata = claim.metadata
        body = {"metadata": {"resourceVersion": metadata.resource_version}, "status": status}
        answer = await self._cluster.api.patch(
            CLAIMS, metadata.name, body, namespace=metadata.namespace, subresource="status"
        )
        return msgspec.convert(answer, Claim)


def _size_of(claim: Claim) -> tuple[str, str]:
    """What it asks for, and what it has."""
    return claim.spec.resources.requests.get("storage", "0"), claim.status.capacity.get("storage", "0")


def _conditions(claim: Claim, **ours: str) -> list[dict[str, Any]]:
    """Those of others as they are, and ours by type, each with its message; since when is kept."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    before = {one.type: one.last_transition_time or now for one in claim.status.conditions}
    others = [msgspec.to_builtins(one) for one in claim.status.conditions if one.type not in _OURS]
    mine = [
        {"type": kind, "status": "True", "lastTransitionTime": before.get(kind, now), "message": message}
        for kind, message in ours.items()
    ]
    return [*others, *mine]
