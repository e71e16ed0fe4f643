"""The driver's configuration, `mountPodPatch` of the ConfigMap (behaviour.md 7): what applies to which volume."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import yaml

from shared.errors import InvalidRequest
from shared.pod_settings import CacheVolume, PodSettings

_FIELDS: Final = frozenset(
    {
        "pvcSelector", "nodeSelector", "ceMountImage", "eeMountImage", "imagePullPolicy", "labels", "annotations",
        "hostNetwork", "hostPID", "hostnameKey", "dnsPolicy", "dnsConfig", "livenessProbe", "readinessProbe",
        "startupProbe", "lifecycle", "resources", "resourcePercentages", "terminationGracePeriodSeconds", "volumes",
        "volumeMounts", "volumeDevices", "env", "initContainers", "mountOptions", "cacheDirs",
    }
)  # fmt: skip
_RESERVED_VOLUMES: Final = ("rsa-key", "init-config", "config-", "jfs-dir", "jfs-fuse-fd", "updatedb", "cachedir-")
_VARIABLE = re.compile(r"\$\{(MOUNT_POINT|VOLUME_ID|VOLUME_NAME|SUB_PATH)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a patch may select by."""

    name: str = ""
    storage_class: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """`patches` in the order in which they apply: a later one replaces the fields that it names."""

    patches: tuple[Mapping[str, Any], ...] = ()
    drops_requests: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Keys that nobody knows are ignored, as users' files have them.

        Raises:
            InvalidRequest: what is wrong, and where.
        """
        try:
            loaded = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise InvalidRequest(f"the configuration is no YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(loaded, dict):
            raise InvalidRequest("the configuration is no map")
        patches = loaded.get("mountPodPatch") or []
        if not isinstance(patches, list) or not all(isinstance(patch, dict) for patch in patches):
            raise InvalidRequest("the configuration: mountPodPatch is no list of maps")
        return cls(
            patches=tuple({key: value for key, value in patch.items() if key in _FIELDS} for patch in patches),
            drops_requests=bool(loaded.get("enableAutoRemoveRequestResources", True)),
        )

    def merged(self, *, claim: Claim | None, node_labels: Mapping[str, str]) -> dict[str, Any]:
        """The fields of every patch for this claim on this node; volumes, mounts and devices add up."""
        merged: dict[str, Any] = {}
        for patch in self.patches:
            if _selects_claim(patch.get("pvcSelector"), claim) and _selects(patch.get("nodeSelector"), node_labels):
                added = _volumes(patch, taken={volume["name"] for volume in merged.get("volumes", ())})
                plain = {
                    key: value for key, value in patch.items() if key not in {*added, "pvcSelector", "nodeSelector"}
                }
                merged |= plain | {key: [*merged.get(key, ()), *values] for key, values in added.items()}
        return merged


def apply(settings: PodSettings, patch: Mapping[str, Any]) -> PodSettings:
    """The settings with a merged patch: what concerns the pod itself stays in `patch`."""
    rest = dict(patch)
    image = rest.pop("ceMountImage", None) or settings.image
    labels = {**settings.labels, **_texts(rest.pop("labels", None), key="labels")}
    annotations = {**settings.annotations, **_texts(rest.pop("annotations", None), key="annotations")}
    resources = rest.pop("resources", None) or settings.resources
    caches = [*settings.caches, *_cache_volumes(rest.pop("cacheDirs", None) or ())]
    for key in ("eeMountImage", "mountOptions", "resourcePercentages", "startupProbe"):
        rest.pop(key, None)
    return replace(
        settings,
        image=image,
        labels=labels,
        annotations=annotations,
        resources=resources,
        caches=tuple({cache.name: cache for cache in caches}.values()),
        patch=rest,
    )


def fill(value: Any, variables: Mapping[str, str]) -> Any:
    """The same with `${MOUNT_POINT}` and its like filled in, at any depth."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: variables[match[1]], value)
    if isinstance(value, Mapping):
        return {key: fill(inner, variables) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [fill(inner, variables) for inner in value]
    return value


def _selects_claim(selector: Mapping[str, Any] | None, claim: Claim | None) -> bool:
    """behaviour.md 7: a name decides together with the rest, a StorageClass alone, else the labels."""
    if not selector:
        return True
    if claim is None or selector.get("matchName", claim.name) != claim.name:
        return False
    if selector.get("matchStorageClassName"):
        return bool(selector["matchStorageClassName"] == claim.storage_class)
    return _selects(selector, claim.labels)


def _selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A LabelSelector of the Kubernetes API."""
    if not selector:
        return True
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    expressions: Iterable[Mapping[str, Any]] = selector.get("matchExpressions") or ()
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(expression, labels) for expression in expressions
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }.get(expression.get("operator", ""), False)


def _volumes(patch: Mapping[str, Any], *, taken: set[str]) -> dict[str, list[Any]]:
    """The patch's own volumes, and the mounts and devices of those; names that are the driver's are skipped."""
    own = [
        volume
        for volume in patch.get("volumes") or ()
        if volume["name"] not in taken and not volume["name"].startswith(_RESERVED_VOLUMES)
    ]
    names = {volume["name"] for volume in own}
    mounts, devices = (
        [mount for mount in patch.get(key) or () if mount["name"] in names] for key in ("volumeMounts", "volumeDevices")
    )
    return {"volumes": own, "volumeMounts": mounts, "volumeDevices": devices}


def _cache_volumes(values: Iterable[Mapping[str, Any]]) -> Iterable[CacheVolume]:
    for number, value in enumerate(values):
        match value.get("type"):
            case "HostPath":
                path = str(value.get("path", ""))
                source = {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
                yield CacheVolume(name=f"cachedir-patch-{number}", path=path, source=source)
            case "PVC":
                source = {"persistentVolumeClaim": {"claimName": str(value.get("name", ""))}}
                yield CacheVolume(name=f"cachedir-pvc-patch-{number}", path=f"/var/jfsCache-p{number}", source=source)
            case "EmptyDir":
                source = {"emptyDir": {key: value[key] for key in ("medium", "sizeLimit") if value.get(key)}}
                yield CacheVolume(name="cachedir-empty-dir", path="/var/jfsCache-emptyDir", source=source)
            case other:
                raise InvalidRequest(f"the configuration: cacheDirs of type {other} are not supported")


def _texts(value: Any, *, key: str) -> dict[str, str]:
    if not isinstance(value or {}, dict):
        raise InvalidRequest(f"the configuration: {key} is no map")
    return {str(name): str(text) for name, text in (value or {}).items()}
