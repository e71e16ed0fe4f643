"""How a client's pod looks: everything that StorageClass, PersistentVolume, claim and configuration may decide of it.

The keys are those of behaviour.md 3.1, their order of precedence that of 3.2: the driver's defaults, the volume's
context, the claim's annotations, the patches of the configuration (`shared.pod_patch`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Self

import yaml

from shared.domain import digest, require_text
from shared.errors import InvalidRequest

_PREFIX: Final = "juicefs/mount-"
_RESOURCES: Final = {
    "cpu-limit": ("limits", "cpu", "5000m"),
    "memory-limit": ("limits", "memory", "5Gi"),
    "cpu-request": ("requests", "cpu", "1000m"),
    "memory-request": ("requests", "memory", "1Gi"),
}
_OF_CLAIM: Final = frozenset(f"{_PREFIX}{key}" for key in _RESOURCES)
_UNSUPPORTED: Final = (f"{_PREFIX}cache-inline-volume",)
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d+)?")
_SCALE: Final = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")} | {
    unit: Decimal(base) ** power
    for base, units in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, unit in enumerate(units, start=1)
}
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_CACHE: Final = "/var/jfsCache"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheVolume:
    """A volume of the pod that the client caches in: `source` is the rest of a pod volume, `path` where it appears."""

    name: str
    path: str
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """`patch` holds the fields of the configuration that are the pod's own business, as they were written there."""

    image: str
    service_account: str = ""
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    host_paths: tuple[str, ...] = ()
    caches: tuple[CacheVolume, ...] = ()
    patch: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """64 hex characters over all fields."""
        caches = [[cache.name, cache.path, cache.source] for cache in self.caches]
        fields = [self.image, self.service_account, self.resources, self.labels, self.annotations, self.host_paths]
        return digest([*fields, caches, self.patch])

    @classmethod
    def parse(
        cls, context: Mapping[str, str], *, claim_annotations: Mapping[str, str], defaults: "PodSettings"
    ) -> Self:
        """What a volume's context asks for, on top of the driver's `defaults`; its claim may set resources.

        Raises:
            InvalidRequest: names the key that can't be understood, or is not supported.
        """
        for key in _UNSUPPORTED:
            if context.get(key):
                raise InvalidRequest(f"{key} is not supported")
        from_claim = {key: value for key, value in claim_annotations.items() if key in _OF_CLAIM}
        image = context.get(f"{_PREFIX}image") or defaults.image
        account = context.get(f"{_PREFIX}service-account") or defaults.service_account
        return cls(
            image=_matching(_IMAGE, image, key=f"{_PREFIX}image"),
            service_account=_matching(_OBJECT_NAME, account, key=f"{_PREFIX}service-account") if account else "",
            resources=_resources({**context, **from_claim}),
            labels=_labels(context.get(f"{_PREFIX}labels", "")),
            annotations=_map(context.get(f"{_PREFIX}annotations", ""), key=f"{_PREFIX}annotations"),
            host_paths=_paths(context.get("juicefs/host-path", ""), key="juicefs/host-path"),
            caches=(*_claims(context), *_empty_dir(context)),
        )

    def with_cache_directories(self, option: str) -> "PodSettings":
        """With a host path for each directory of the mount option cache-dir; without any cache, the default one."""
        paths = [path for path in option.split(":") if path and path != "memory"]
        if not paths and not option and not self.caches:
            paths = [_CACHE]
        hosts = tuple(
            CacheVolume(name=f"cachedir-{number}", path=path, source={"hostPath": _directory(path)})
            for number, path in enumerate(_paths(",".join(paths), key="mount option cache-dir"))
        )
        return replace(self, caches=(*self.caches, *hosts))

    def cache_option(self, option: str) -> str:
        """The value of cache-dir; empty leaves it to the client, whose default is mounted too."""
        paths = [cache.path for cache in self.caches]
        if option.split(":") == ["memory"]:
            paths.append("memory")
        return "" if paths == [_CACHE] else ":".join(dict.fromkeys(paths))


def quantity(text: str, *, key: str) -> Decimal:
    """A Kubernetes quantity as a number.

    Raises:
        InvalidRequest: names the key.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{key} is not a quantity such as 500m or 1Gi")
    number, suffix = match[1], match[2] or ""
    if suffix[:1] in {"e", "E"} and len(suffix) > 1:
        return Decimal(f"{number}{suffix}")
    return Decimal(number) * _SCALE[suffix]


def _resources(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """behaviour.md 3.1: a limit of 0 or less is none; a request is none only below 0."""
    found: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    for key, (kind, resource, default) in _RESOURCES.items():
        text = values.get(f"{_PREFIX}{key}") or default
        amount = quantity(text, key=f"{_PREFIX}{key}")
        if amount > 0 or (kind == "requests" and amount == 0):
            found[kind][resource] = text.strip()
    return {kind: amounts for kind, amounts in found.items() if amounts}


def without_requests(resources: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """For a node that is short of what was asked: nothing is requested, limits stay (behaviour.md 4.8)."""
    return {**resources, "requests": {"cpu": "0", "memory": "0"}}


def _labels(text: str) -> dict[str, str]:
    found = _map(text, key=f"{_PREFIX}labels")
    if not all(_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value) for key, value in found.items()):
        raise InvalidRequest(f"{_PREFIX}labels: a key or value is none that Kubernetes takes as a label")
    return found


def _map(text: str, *, key: str) -> dict[str, str]:
    """A map of texts, from JSON or YAML."""
    if not text.strip():
        return {}
    try:
        loaded = json.loads(text)
    except ValueError:
        try:
            loaded = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - it makes nothing but texts, lists and maps
        except (yaml.YAMLError, RecursionError):
            loaded = None
    if not isinstance(loaded, dict) or not all(isinstance(part, str) for pair in loaded.items() for part in pair):
        raise InvalidRequest(f"{key} is not a JSON or YAML map of texts")
    return loaded


def _claims(context: Mapping[str, str]) -> list[CacheVolume]:
    key = f"{_PREFIX}cache-pvc"
    names = [name.strip() for name in context.get(key, "").split(",") if name.strip()]
    return [
        CacheVolume(
            name=f"cachedir-pvc-{number}",
            path=f"{_CACHE}-{number}",
            source={"persistentVolumeClaim": {"claimName": _matching(_OBJECT_NAME, name, key=key)}},
        )
        for number, name in enumerate(names)
    ]


def _empty_dir(context: Mapping[str, str]) -> list[CacheVolume]:
    key = f"{_PREFIX}cache-emptydir"
    if not context.get(key):
        return []
    medium, _, size = context[key].partition(":")
    if medium not in {"", "Memory"} and not medium.startswith("HugePages"):
        raise InvalidRequest(f"{key} is not <medium>[:<size>] such as Memory:1Gi or :10Gi")
    source = {"medium": medium} if medium else {}
    if size:
        quantity(size, key=key)
        source["sizeLimit"] = size
    return [CacheVolume(name="cachedir-empty-dir", path=f"{_CACHE}-emptyDir", source={"emptyDir": source})]


def _paths(text: str, *, key: str) -> tuple[str, ...]:
    """Absolute and plain: a path of the host that climbs could be any other."""
    found = [path.strip() for path in text.split(",") if path.strip()]
    for path in found:
        require_text(path, field=key, limit=4096)
        if not path.startswith("/") or path == "/" or ".." in path.split("/") or ":" in path:
            raise InvalidRequest(f"{key} must hold absolute paths without '..' and ':', and not the root")
    return tuple(dict.fromkeys(found))


def _matching(pattern: re.Pattern[str], text: str, *, key: str) -> str:
    if not pattern.fullmatch(text):
        raise InvalidRequest(f"{key} has a value that can't be used")
    return text


def _directory(path: str) -> dict[str, str]:
    return {"path": path, "type": "DirectoryOrCreate"}
