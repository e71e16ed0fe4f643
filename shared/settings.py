"""The settings of a client: everything that decides whether two targets may share one.

Two publishes get the same client if, and only if, their settings have the same digest (promise 20). The rules for
StorageClass and PV keys are those of behaviour.md 3.1 and 3.3.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.domain import Subpath, digest, letters, require_text
from shared.errors import InvalidRequest

# Kubelet adds these to the volume context; they tell of the pod, not of the volume, and tokens are secrets.
_KUBELET_PREFIX: Final = "csi.storage.k8s.io/"
# Options that would take the client out of our hands, and the one that we set ourselves from the subdirectory.
_REFUSED: Final = frozenset({"background", "d", "help", "h", "update-fstab", "log", "force", "no-syslog"})
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_PLAIN_ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,46}[a-z0-9])?")
_SIX_LETTERS = re.compile(r"[a-z]{6}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What one client is started with. `options` are (key, value) pairs, sorted; a flag has an empty value.

    `pod` is the digest of what its pod looks like, empty for a client that is no pod.
    """

    volume_id: str
    credentials: str
    subdir: Subpath
    options: tuple[tuple[str, str], ...]
    delete_delay: float = 0.0
    clean_cache: bool = False
    pod: str = ""

    @property
    def digest(self) -> str:
        """64 hex characters over all fields: the identity of a client."""
        return digest(self.to_json())

    @property
    def mount_name(self) -> str:
        """Name of the client, its mount point and its directory: `<unique id>-<six letters>`, at most 55 characters."""
        return f"{unique_id(self.volume_id)}-{letters(self.digest)}"

    def to_json(self) -> dict[str, Any]:
        """As kept beside a running client; `from_json` reads it back."""
        return {
            "volume_id": self.volume_id,
            "credentials": self.credentials,
            "subdir": self.subdir.text,
            "options": [list(pair) for pair in self.options],
            "delete_delay": self.delete_delay,
            "clean_cache": self.clean_cache,
            **({"pod": self.pod} if self.pod else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ClientSettings":
        return cls(
            volume_id=value["volume_id"],
            credentials=value["credentials"],
            subdir=Subpath(text=value["subdir"]),
            options=tuple((key, text) for key, text in value["options"]),
            delete_delay=value["delete_delay"],
            clean_cache=value["clean_cache"],
        )


def unique_id(volume_id: str) -> str:
    """The volume id as a file name of at most 48 characters: itself where it can be, else a readable part and hash."""
    if _PLAIN_ID.fullmatch(volume_id) and ".." not in volume_id:
        return volume_id
    readable = re.sub(r"[^a-z0-9]+", "-", volume_id.lower()).strip("-")[:35] or "volume"
    return f"{readable}-{digest(volume_id)[:12]}"


def is_mount_name(name: str, *, unique: str = "") -> bool:
    """True for `<unique id>-<six letters>`, of the volume with this unique id if one is given."""
    head, dash, tail = name.rpartition("-")
    return bool(dash and _SIX_LETTERS.fullmatch(tail) and _PLAIN_ID.fullmatch(head) and unique in {"", head})


def parse(
    *, volume_id: str, context: Mapping[str, str], mount_options: Sequence[str], credentials: str
) -> ClientSettings:
    """The settings that a volume's context and mount options ask for.

    Raises:
        InvalidRequest: names the key or option that can't be understood.
    """
    options = parse_options([*context.get("mountOptions", "").split(","), *mount_options])
    base = Subpath.parse(options.pop("subdir", ""), field="mount option subdir")
    own = Subpath.parse(context.get("subPath", ""), field="volume context subPath")
    return ClientSettings(
        volume_id=require_text(volume_id, field="volume_id"),
        credentials=credentials,
        subdir=base / own,
        options=tuple(sorted(options.items())),
        delete_delay=_duration(context.get("juicefs/mount-delete-delay", "")),
        clean_cache=_truth(context.get("juicefs/clean-cache", ""), key="juicefs/clean-cache"),
    )


def parse_options(values: Sequence[str]) -> dict[str, str]:
    """Mount options as a map; later ones win. `read-only` is spelled `ro`.

    Raises:
        InvalidRequest: more than one `=`, no name, or an option that the driver must not pass on.
    """
    found: dict[str, str] = {}
    for item in (part.strip() for value in values for part in value.split(",")):
        if not item:
            continue
        key, _, value = (part.strip() for part in item.partition("="))
        if "=" in value or not _OPTION.fullmatch(key):
            raise InvalidRequest("mount options: each must be a name, or a name and a value with one '=' between")
        if key in _REFUSED:
            raise InvalidRequest(f"mount option {key} can't be used: the driver runs the client itself")
        if value:
            require_text(value, field=f"mount option {key}", limit=4096)
        found["ro" if key == "read-only" else key] = value
    return found


def shared_context(context: Mapping[str, str]) -> dict[str, str]:
    """The volume context without what kubelet adds for each pod."""
    return {key: value for key, value in context.items() if not key.startswith(_KUBELET_PREFIX)}


def _duration(text: str) -> float:
    """A Go duration such as `1h30m`, in seconds."""
    if not text or text == "0":
        return 0.0
    if "".join(match.group() for match in _DURATION.finditer(text)) != text:
        raise InvalidRequest("juicefs/mount-delete-delay is not a duration such as 30s, 5m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def _truth(text: str, *, key: str) -> bool:
    if text in {"", "false"}:
        return False
    if text == "true":
        return True
    raise InvalidRequest(f"{key} must be 'true' or 'false'")
