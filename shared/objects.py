"""Kubernetes objects as far as the driver looks at them; whatever else they hold is not even decoded.

What is said nowhere in an object has its default here: empty, as Kubernetes itself reads it.
"""

from typing import Any

import msgspec


class _Part(msgspec.Struct, rename="camel", kw_only=True, frozen=True, gc=False):
    """A part of an object: never changed, and without cycles, so the collector need not look at thousands of them."""


class OwnerReference(_Part, frozen=True):
    """Who takes this object along when it goes."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class Metadata(_Part, frozen=True):
    """What every object has, and a bookmark only a part of. Times are RFC 3339."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Object(_Part, frozen=True):
    """What an Informer can hold."""

    metadata: Metadata

    @property
    def key(self) -> str:
        """`namespace/name`, or the name of what has no namespace."""
        where = self.metadata.namespace
        return f"{where}/{self.metadata.name}" if where else self.metadata.name


class SecretReference(_Part, frozen=True):
    """A Secret by name."""

    name: str = ""
    namespace: str = ""


class ClaimReference(_Part, frozen=True):
    """The claim that a volume is bound to, or reserved for."""

    name: str = ""
    namespace: str = ""
    uid: str = ""


class CsiSource(_Part, frozen=True):
    """A volume of a CSI driver."""

    driver: str = ""
    volume_handle: str = ""
    volume_attributes: dict[str, str] = {}
    read_only: bool = False
    node_publish_secret_ref: SecretReference | None = None
    controller_expand_secret_ref: SecretReference | None = None


class PersistentVolumeSpec(_Part, frozen=True):
    """What a volume is."""

    csi: CsiSource | None = None
    claim_ref: ClaimReference | None = None
    capacity: dict[str, str] = {}
    access_modes: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    storage_class_name: str = ""
    persistent_volume_reclaim_policy: str = "Retain"
    volume_mode: str = "Filesystem"


class PersistentVolumeStatus(_Part, frozen=True):
    """Available, Bound, Released or Failed."""

    phase: str = ""


class PersistentVolume(Object, frozen=True):
    """A PersistentVolume."""

    spec: PersistentVolumeSpec = PersistentVolumeSpec()
    status: PersistentVolumeStatus = PersistentVolumeStatus()


class Resources(_Part, frozen=True):
    """Quantities as they are written, such as 10Gi."""

    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class ClaimSpec(_Part, frozen=True):
    """What is asked for. No class (None) is not the class without a name."""

    volume_name: str = ""
    storage_class_name: str | None = None
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    resources: Resources = Resources()
    selector: dict[str, Any] | None = None
    data_source: dict[str, Any] | None = None
    data_source_ref: dict[str, Any] | None = None


class Condition(_Part, frozen=True):
    """Something that is so ("True"), not so ("False") or not known, and why."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class ClaimStatus(_Part, frozen=True):
    """What a claim has got."""

    phase: str = ""
    capacity: dict[str, str] = {}
    conditions: tuple[Condition, ...] = ()


class Claim(Object, frozen=True):
    """A PersistentVolumeClaim."""

    spec: ClaimSpec = ClaimSpec()
    status: ClaimStatus = ClaimStatus()


class StorageClass(Object, frozen=True):
    """A StorageClass."""

    provisioner: str = ""
    parameters: dict[str, str] = {}
    mount_options: tuple[str, ...] = ()
    reclaim_policy: str = "Delete"
    volume_binding_mode: str = "Immediate"
    allow_volume_expansion: bool = False


class Running(_Part, frozen=True):
    """A container that runs."""

    started_at: str | None = None


class Waiting(_Part, frozen=True):
    """A container that does not run yet, and why."""

    reason: str = ""
    message: str = ""


class Terminated(_Part, frozen=True):
    """A container that has ended."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    finished_at: str | None = None


class ContainerState(_Part, frozen=True):
    """One of the three."""

    running: Running | None = None
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Part, frozen=True):
    """How a container is."""

    name: str = ""
    ready: bool = False
    restart_count: int = 0
    image: str = ""
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class Container(_Part, frozen=True):
    """A container of a pod."""

    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()


class ClaimSource(_Part, frozen=True):
    """The claim behind a pod's volume."""

    claim_name: str = ""


class PodVolume(_Part, frozen=True):
    """A volume of a pod, as far as it is a claim's."""

    name: str = ""
    persistent_volume_claim: ClaimSource | None = None


class PodSpec(_Part, frozen=True):
    """Where a pod is to run, and what."""

    node_name: str = ""
    containers: tuple[Container, ...] = ()
    volumes: tuple[PodVolume, ...] = ()


class PodStatus(_Part, frozen=True):
    """How a pod is."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Object, frozen=True):
    """A Pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(_Part, frozen=True):
    """Why a node is avoided."""

    key: str = ""
    effect: str = ""


class NodeSpec(_Part, frozen=True):
    """How a node is to be used."""

    unschedulable: bool = False
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    taints: tuple[Taint, ...] = ()


class NodeStatus(_Part, frozen=True):
    """How a node is."""

    conditions: tuple[Condition, ...] = ()


class Node(Object, frozen=True):
    """A Node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ConfigMap(Object, frozen=True):
    """A ConfigMap."""

    data: dict[str, str] = {}
