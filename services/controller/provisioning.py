"""What a claim gets: a pure function of the claim, its StorageClass and, where the volume waits for one, its node.

Refusals are sentences for the person who reads `kubectl describe pvc`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.controller.records import require_own
from services.controller.templates import SECRET_PREFIX, Owner, Templates, names_node
from shared import quantity, settings
from shared.domain import Subpath, capacity_in_range
from shared.errors import InvalidRequest
from shared.objects import Claim, Metadata, StorageClass
from shared.secret_ref import SecretRef

PROVISIONED_BY: Final = "pv.kubernetes.io/provisioned-by"
FINALIZER: Final = "external-provisioner.volume.kubernetes.io/finalizer"
"""The official provisioner's: a PersistentVolume that is deleted before its claim still loses its directory."""
DELETION_SECRET: Final = "volume.kubernetes.io/provisioner-deletion-secret"  # noqa: S105 - a key, `-name` and `-namespace`
_ASKED_BY: Final = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
_CLASS: Final = "volume.beta.kubernetes.io/storage-class"
_SELECTED_NODE: Final = "volume.kubernetes.io/selected-node"
_WRITERS: Final = frozenset({"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"})
_READERS: Final = frozenset({"ReadOnlyMany"})


def is_asked(claim: Claim, *, driver: str) -> bool:
    """The claim has no volume yet and waits for this provisioner."""
    annotations = claim.metadata.annotations
    asked = next((annotations[key] for key in _ASKED_BY if annotations.get(key)), "")
    return asked == driver and not claim.spec.volume_name and not claim.metadata.deletion_timestamp


def class_name(claim: Claim) -> str:
    """The StorageClass that the claim names, in either of the two places."""
    return claim.metadata.annotations.get(_CLASS, "") or claim.spec.storage_class_name or ""


def selected_node(claim: Claim) -> str:
    """The node that the scheduler chose for the first pod; empty until then."""
    return claim.metadata.annotations.get(_SELECTED_NODE, "")


def waits_for_pod(claim: Claim, storage_class: StorageClass) -> bool:
    """True until a pod is there, for a class that says WaitForFirstConsumer."""
    return storage_class.volume_binding_mode == "WaitForFirstConsumer" and not selected_node(claim)


def needs_node(storage_class: StorageClass) -> bool:
    """True if the class has a template that asks for the node."""
    return any(map(names_node, (*storage_class.parameters.values(), *storage_class.mount_options)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The volume of one claim: `path` is its directory in the file system, `required` its size in bytes."""

    claim: Claim
    storage_class: StorageClass
    path: Subpath
    required: int
    attributes: Mapping[str, str]
    mount_options: tuple[str, ...]
    provisioner: SecretRef
    node_publish: SecretRef
    controller_expand: SecretRef | None = None
    is_secret_held: bool = False

    @property
    def name(self) -> str:
        return volume_name(self.claim)

    @property
    def is_deleted_with_claim(self) -> bool:
        return self.storage_class.reclaim_policy == "Delete"

    def manifest(self, *, capacity: int, driver: str) -> dict[str, Any]:
        """The PersistentVolume of a volume that has so many bytes (behaviour.md 1.11)."""
        csi: dict[str, Any] = {
            "driver": driver,
            "volumeHandle": self.name,
            "fsType": "juicefs",
            "readOnly": False,
            "volumeAttributes": {**self.attributes, "capacity": str(capacity)},
            "nodePublishSecretRef": self.node_publish.to_json(),
        }
        if self.controller_expand:
            csi["controllerExpandSecretRef"] = self.controller_expand.to_json()
        annotations = {
            PROVISIONED_BY: driver,
            f"{DELETION_SECRET}-name": self.provisioner.name,
            f"{DELETION_SECRET}-namespace": self.provisioner.namespace,
        }
        metadata: dict[str, Any] = {"name": self.name, "annotations": annotations}
        if self.is_deleted_with_claim:
            metadata["finalizers"] = [FINALIZER]
        spec = {
            "capacity": {"storage": quantity.of_bytes(capacity)},
            "accessModes": list(self.claim.spec.access_modes),
            "volumeMode": self.claim.spec.volume_mode,
            "claimRef": _reference(self.claim.metadata),
            "persistentVolumeReclaimPolicy": self.storage_class.reclaim_policy,
            "storageClassName": self.storage_class.metadata.name,
            "mountOptions": list(self.mount_options),
            "csi": csi,
        }
        return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filled:
    """A StorageClass with the values of one claim in it."""

    parameters: Mapping[str, str]
    mount_options: tuple[str, ...] = field(default=())


def volume_name(claim: Claim) -> str:
    """Name of its PersistentVolume, which is the volume's id too."""
    return f"pvc-{claim.metadata.uid}"


def plan(claim: Claim, storage_class: StorageClass, *, node: Mapping[str, Any] | None = None) -> Plan:
    """What the claim gets.

    Raises:
        InvalidRequest: it can't be had, and why.
    """
    _check(claim, has_pattern=bool(storage_class.parameters.get("pathPattern")))
    filled = _fill(claim, storage_class, node=_node(node or {}))
    subpath = _subpath(claim, filled.parameters, pattern=storage_class.parameters.get("pathPattern", ""))
    attributes = {**filled.parameters, "subPath": subpath}
    wanted = settings.parse(
        volume_id=volume_name(claim), context=attributes, mount_options=filled.mount_options, credentials="unread"
    )
    refs = {purpose: _secret(filled.parameters, purpose) for purpose in ("provisioner", "node-publish")}
    missing = [purpose for purpose, ref in refs.items() if ref is None]
    if missing or not (provisioner := refs["provisioner"]) or not (node_publish := refs["node-publish"]):
        raise InvalidRequest(
            f"StorageClass {storage_class.metadata.name} names no Secret: set {SECRET_PREFIX}{missing[0]}-secret-name "
            f"and {SECRET_PREFIX}{missing[0]}-secret-namespace in its parameters"
        )
    return Plan(
        claim=claim,
        storage_class=storage_class,
        path=require_own(wanted.subdir),
        required=_size(claim),
        attributes=attributes,
        mount_options=filled.mount_options,
        provisioner=provisioner,
        node_publish=node_publish,
        controller_expand=_secret(filled.parameters, "controller-expand"),
        is_secret_held=filled.parameters.get("secretFinalizer") == "true" and storage_class.reclaim_policy == "Delete",
    )


def _secret(parameters: Mapping[str, str], purpose: str) -> SecretRef | None:
    """The one that `csi.storage.k8s.io/<purpose>-secret-{name,namespace}` names; None without either."""
    keys = [f"{SECRET_PREFIX}{purpose}-secret-{part}" for part in ("namespace", "name")]
    namespace, name = (parameters.get(key, "") for key in keys)
    if not namespace and not name:
        return None
    if not namespace or not name:
        raise InvalidRequest(f"parameter {keys[bool(namespace)]} is empty: it is required")
    return SecretRef(namespace=namespace, name=name)


def _check(claim: Claim, *, has_pattern: bool) -> None:
    spec = claim.spec
    if spec.volume_mode != "Filesystem":
        raise InvalidRequest(f"volumeMode {spec.volume_mode} is not supported: JuiceFS has file systems only")
    if spec.selector is not None:
        raise InvalidRequest(
            'claim Selector is not supported: to use an existing PersistentVolume, set storageClassName to ""'
        )
    if spec.data_source is not None or spec.data_source_ref is not None:
        raise InvalidRequest("dataSource: volumes can't be made from snapshots or other claims yet")
    modes = set(spec.access_modes)
    if unknown := sorted(modes - _WRITERS - _READERS):
        raise InvalidRequest(f"access mode {unknown[0]} is not supported")
    if modes <= _READERS and not has_pattern:
        raise InvalidRequest(
            "ReadOnlyMany: a new volume is empty and nobody could write to it; ask for ReadWriteMany, use a static "
            "PersistentVolume, or a StorageClass with pathPattern"
        )


def _size(claim: Claim) -> int:
    resources = claim.spec.resources
    wanted = quantity.whole(resources.requests.get("storage", ""), field="spec.resources.requests.storage")
    return capacity_in_range(required=wanted, limit=0)


def _fill(claim: Claim, storage_class: StorageClass, *, node: Owner) -> _Filled:
    templates = Templates(claim=_owner(claim.metadata), volume=volume_name(claim), node=node)
    return _Filled(
        parameters={key: templates.parameter(key, text) for key, text in storage_class.parameters.items()},
        mount_options=tuple(
            option for entry in storage_class.mount_options for option in templates.mount_options(entry)
        ),
    )


def _subpath(claim: Claim, parameters: Mapping[str, str], *, pattern: str) -> str:
    if not pattern:
        return volume_name(claim)
    path = Subpath.parse(parameters["pathPattern"], field="pathPattern")
    if not path:
        raise InvalidRequest(f"pathPattern {pattern} is the root of the file system for this claim: it must name more")
    return path.text


def _owner(metadata: Metadata) -> Owner:
    return Owner(
        name=metadata.name,
        namespace=metadata.namespace,
        labels=metadata.labels,
        annotations=metadata.annotations,
    )


def _node(node: Mapping[str, Any]) -> Owner:
    metadata = node.get("metadata", {})
    return Owner(
        name=metadata.get("name", ""),
        pod_cidr=node.get("spec", {}).get("podCIDR", ""),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
    )


def _reference(metadata: Metadata) -> dict[str, str]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": metadata.namespace,
        "name": metadata.name,
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
    }
