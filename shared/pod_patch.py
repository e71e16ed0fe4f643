"""The driver's configuration, `mountPodPatch` of the ConfigMap (behaviour.md 7): what applies to which volume."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

import msgspec
import yaml

from shared.errors import InvalidRequest
from shared.pod_settings import CacheVolume, PodSettings, plain_path
from shared.settings import parse_options

_RESERVED_VOLUMES: Final = (
    "rsa-key", "init-config", "config-", "jfs-dir", "jfs-fuse-fd", "updatedb", "update-db", "cachedir-", "hostpath-",
)  # fmt: skip
_VARIABLE = re.compile(r"\$\{(MOUNT_POINT|VOLUME_ID|VOLUME_NAME|SUB_PATH)\}")


class _Shape(msgspec.Struct, rename="camel", kw_only=True):
    """What stands where in the configuration: whatever has another shape is refused when it is read, not when used."""


class _Expression(_Shape):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class _Labels(_Shape):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Expression] | None = None


class _Selector(_Labels):
    match_storage_class_name: str | None = None
    match_name: str | None = None


class _Named(_Shape):
    name: str


class _Resources(_Shape):
    requests: dict[str, str | int | float] | None = None
    limits: dict[str, str | int | float] | None = None


class _CacheDirectory(_Shape):
    type: Literal["HostPath", "PVC", "EmptyDir", "Ephemeral"]
    path: str = ""
    name: str = ""
    medium: str = ""
    size_limit: str | int = ""


class _Patch(_Shape):
    pvc_selector: _Selector | None = None
    node_selector: _Labels | None = None
    ce_mount_image: str | None = None
    ee_mount_image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    host_network: bool | None = None
    host_pid: bool | None = msgspec.field(default=None, name="hostPID")
    hostname_key: Literal["volumeid", "podname"] | None = None
    dns_policy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    dns_config: dict[str, Any] | None = None
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None
    startup_probe: dict[str, Any] | None = None
    lifecycle: dict[str, Any] | None = None
    resources: _Resources | None = None
    resource_percentages: dict[str, Any] | None = None
    termination_grace_period_seconds: int | None = None
    volumes: list[_Named] | None = None
    volume_mounts: list[_Named] | None = None
    volume_devices: list[_Named] | None = None
    env: list[_Named] | None = None
    init_containers: list[_Named] | None = None
    mount_options: list[str] | None = None
    cache_dirs: list[_CacheDirectory] | None = None


class _Whole(_Shape):
    mount_pod_patch: list[_Patch] | None = None
    enable_auto_remove_request_resources: bool | None = None


_FIELDS: Final = frozenset(_Patch.__struct_encode_fields__)


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
            whole = msgspec.convert(loaded, _Whole)
        except (yaml.YAMLError, RecursionError) as error:
            raise InvalidRequest(f"the configuration is no YAML: {(str(error) or 'nested').splitlines()[0]}") from None
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the configuration: {error}") from None
        patches = [_present(patch) for patch in loaded.get("mountPodPatch") or ()]
        for patch in patches:
            parse_options(patch.get("mountOptions", ()))
            list(_cache_volumes(cache for cache in patch.get("cacheDirs", ()) if cache["type"] != "Ephemeral"))
        return cls(patches=tuple(patches), drops_requests=whole.enable_auto_remove_request_resources is not False)

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


def _present(patch: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something; what is null is not there, as in every manifest."""
    return {key: value for key, value in patch.items() if key in _FIELDS and value is not None}


def apply(settings: PodSettings, patch: Mapping[str, Any]) -> PodSettings:
    """The settings with a merged patch: what concerns the pod itself stays in `patch`."""
    rest = dict(patch)
    image = rest.pop("ceMountImage", None) or settings.image
    labels = {**settings.labels, **rest.pop("labels", {})}
    annotations = {**settings.annotations, **rest.pop("annotations", {})}
    resources = _written(rest.pop("resources", {})) or settings.resources
    added = list(_cache_volumes(rest.pop("cacheDirs", ())))
    replaced = {cache.name for cache in added}
    caches = [*(cache for cache in settings.caches if cache.name not in replaced), *added]
    for key in ("eeMountImage", "mountOptions", "resourcePercentages", "startupProbe"):
        rest.pop(key, None)
    return replace(
        settings,
        image=image,
        labels=labels,
        annotations=annotations,
        resources=resources,
        caches=tuple({cache.path: cache for cache in caches}.values()),
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
    if claim is None or (selector.get("matchName") or claim.name) != claim.name:
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
    }[expression["operator"]]


def _volumes(patch: Mapping[str, Any], *, taken: set[str]) -> dict[str, list[Any]]:
    """The patch's own volumes, and the mounts and devices of those; names that are the driver's are skipped."""
    own: list[Any] = []
    for volume in patch.get("volumes", ()):
        if not volume["name"].startswith(_RESERVED_VOLUMES) and volume["name"] not in taken:
            taken = {*taken, volume["name"]}
            own.append(volume)
    names = {volume["name"] for volume in own}
    mounts, devices = (
        [mount for mount in patch.get(key, ()) if mount["name"] in names] for key in ("volumeMounts", "volumeDevices")
    )
    return {"volumes": own, "volumeMounts": mounts, "volumeDevices": devices}


def _cache_volumes(values: Iterable[Mapping[str, Any]]) -> Iterable[CacheVolume]:
    """behaviour.md 10: of several empty directories the first one counts."""
    has_empty = False
    for number, value in enumerate(values):
        match value["type"]:
            case "HostPath":
                path = plain_path(value.get("path", ""), key="the configuration: path of cacheDirs")
                source = {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
                yield CacheVolume(name=f"cachedir-patch-{number}", path=path, source=source)
            case "PVC":
                if not value.get("name"):
                    raise InvalidRequest("the configuration: cacheDirs of type PVC need the claim's name")
                source = {"persistentVolumeClaim": {"claimName": value["name"]}}
                yield CacheVolume(name=f"cachedir-pvc-patch-{number}", path=f"/var/jfsCache-p{number}", source=source)
            case "Ephemeral":
                raise InvalidRequest("the configuration: cacheDirs of type Ephemeral are not supported")
            case _ if not has_empty:
                has_empty = True
                source = {"emptyDir": {key: value[key] for key in ("medium", "sizeLimit") if value.get(key)}}
                yield CacheVolume(name="cachedir-empty-dir", path="/var/jfsCache-emptyDir", source=source)


def _written(resources: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """YAML reads 2 as a number, and Kubernetes as a quantity."""
    found = {kind: {name: str(amount) for name, amount in (some or {}).items()} for kind, some in resources.items()}
    return {kind: amounts for kind, amounts in found.items() if amounts}
