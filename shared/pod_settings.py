"""How a client's pod looks: everything that StorageClass, PersistentVolume, claim and configuration may decide of it.

The keys are those of behaviour.md 3.1, their order of precedence that of 3.2: the driver's defaults, the volume's
context, the claim's annotations, the patches of the configuration (`shared.pod_patch`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final, Self

import yaml

from shared import quantity
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
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_CACHE: Final = "/var/jfsCache"
_MAP_CHARACTERS: Final = 16384
_MIB: Final = 1 << 20
_BUFFER = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)([KMGTPE]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)%", re.ASCII)


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
            annotations=_annotations(context.get(f"{_PREFIX}annotations", "")),
            host_paths=_paths(context.get("juicefs/host-path", ""), key="juicefs/host-path"),
            caches=(*_claims(context), *_empty_dir(context)),
        )

    def with_cache_directories(self, option: str) -> "PodSettings":
        """With a host path for each directory of the mount option cache-dir; without any cache, the default one."""
        paths = [path for path in option.split(":") if path and path != "memory"]
        if not paths and not option and not self.caches:
            paths = [_CACHE]
        present = {cache.path for cache in self.caches}
        hosts = tuple(
            CacheVolume(name=f"cachedir-{number}", path=path, source={"hostPath": _directory(path)})
            for number, path in enumerate(_paths(",".join(paths), key="mount option cache-dir"))
            if path not in present
        )
        return replace(self, caches=(*self.caches, *hosts))

    def cache_option(self, option: str) -> str:
        """The value of cache-dir; empty leaves it to the client, whose default is mounted too."""
        paths = [cache.path for cache in self.caches]
        if option.split(":") == ["memory"]:
            paths.append("memory")
        return "" if paths == [_CACHE] else ":".join(dict.fromkeys(paths))


def buffer_size(option: str, resources: Mapping[str, Mapping[str, str]]) -> str:
    """The value of buffer-size, in MiB where the memory limit decides it (behaviour.md 3.3); empty for none."""
    limit = resources.get("limits", {}).get("memory", "")
    most = quantity.parse(str(limit), field="the memory limit") / _MIB if limit else None
    share, size = _PERCENT.fullmatch(option), _BUFFER.fullmatch(option)
    if not share and not size:
        return ""
    if most is None:
        return option
    if share:
        part = most * min(Decimal(share[1]), Decimal(100)) / 100
        return str(part.to_integral_value(rounding=ROUND_CEILING))
    if size and Decimal(size[1]) * Decimal(1024) ** ("KMGTPE".index(size[2].upper() or "M") - 1) > most:
        return str(int(most))
    return option


def _resources(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """behaviour.md 3.1: a limit of 0 or less is none; a request is none only below 0.

    A request that nobody chose is not above the limit that somebody did: Kubernetes would refuse the pod.
    """
    found: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    amounts: dict[tuple[str, str], Decimal] = {}
    for key, (kind, resource, default) in _RESOURCES.items():
        text = values.get(f"{_PREFIX}{key}", "").strip() or default
        amounts[kind, resource] = quantity.parse(text, field=f"{_PREFIX}{key}")
        if amounts[kind, resource] > 0 or (kind == "requests" and amounts[kind, resource] == 0):
            found[kind][resource] = text
    for resource, limit in found["limits"].items():
        is_own = bool(values.get(f"{_PREFIX}{resource}-request"))
        if not is_own and amounts["requests", resource] > amounts["limits", resource]:
            found["requests"][resource] = limit
    return {kind: texts for kind, texts in found.items() if texts}


def _labels(text: str) -> dict[str, str]:
    found = _map(text, key=f"{_PREFIX}labels")
    if not all(_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value) for key, value in found.items()):
        raise InvalidRequest(f"{_PREFIX}labels: a key or value is none that Kubernetes takes as a label")
    return found


def _annotations(text: str) -> dict[str, str]:
    found = _map(text, key=f"{_PREFIX}annotations")
    if not all(map(_LABEL_KEY.fullmatch, found)):
        raise InvalidRequest(f"{_PREFIX}annotations: a key is none that Kubernetes takes for an annotation")
    return found


def _map(text: str, *, key: str) -> dict[str, str]:
    """A map of texts, from JSON or YAML."""
    if not text.strip():
        return {}
    if len(text) > _MAP_CHARACTERS:
        raise InvalidRequest(f"{key} is longer than {_MAP_CHARACTERS} characters")
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
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
        quantity.parse(size, field=key)
        source["sizeLimit"] = size
    return [CacheVolume(name="cachedir-empty-dir", path=f"{_CACHE}-emptyDir", source={"emptyDir": source})]


def _paths(text: str, *, key: str) -> tuple[str, ...]:
    found = [path.strip() for path in text.split(",") if path.strip()]
    return tuple(dict.fromkeys(plain_path(path, key=key) for path in found))


def plain_path(path: str, *, key: str) -> str:
    """The path, absolute and plain: a path of the host that climbs could be any other.

    Raises:
        InvalidRequest: names the key.
    """
    require_text(path, field=key, limit=4096)
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or not parts or ".." in parts or ":" in path or "," in path:
        raise InvalidRequest(f"{key} must hold absolute paths without '..', ':' and ',', and not the root")
    return f"/{'/'.join(parts)}"


def _matching(pattern: re.Pattern[str], text: str, *, key: str) -> str:
    if not pattern.fullmatch(text):
        raise InvalidRequest(f"{key} has a value that can't be used")
    return text


def _directory(path: str) -> dict[str, str]:
    return {"path": path, "type": "DirectoryOrCreate"}
