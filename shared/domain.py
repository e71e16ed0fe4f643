"""The nouns of the driver. Read this first.

Every value is parsed once, where it enters; parsing refuses bad input with `InvalidRequest`, so that what holds one
of these objects need not ask again.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Self

from shared.errors import InvalidRequest, OutOfRange

GIB: Final = 1 << 30
MAX_ID_BYTES: Final = 128
"""CSI spec, "Size Limits": no field of type string may be longer than 128 bytes unless it says otherwise."""

_NAME_BYTES: Final = 255  # path_resolution(7): NAME_MAX
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def digest(value: Any) -> str:
    """SHA-256 over canonical JSON, as 64 hex characters: equal values, equal digests, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def letters(hex_digest: str, count: int = 6) -> str:
    """The digest as lowercase letters, for names of Kubernetes objects and directories."""
    number, found = int(hex_digest, 16), []
    for _ in range(count):
        number, rest = divmod(number, 26)
        found.append(chr(ord("a") + rest))
    return "".join(found)


def require_text(value: str, *, field: str, limit: int = MAX_ID_BYTES) -> str:
    """Refuse what no field of a request may be: empty, longer than `limit` bytes, or with control characters.

    Raises:
        InvalidRequest: names the field, never shows the value.
    """
    if not isinstance(value, str):  # the wire's decoder is lenient
        raise InvalidRequest(f"{field} is not text")
    if not value:
        raise InvalidRequest(f"{field} is empty: it is required")
    if len(value.encode("utf-8", "surrogatepass")) > limit:
        raise InvalidRequest(f"{field} is longer than {limit} bytes")
    if _CONTROL.search(value):
        raise InvalidRequest(f"{field} contains a control character")
    return value


class Secret:
    """A value that prints `***`. `.reveal()` is the only way in."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself: for an environment variable or a 0600 file, nothing else."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not written anywhere")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subpath:
    """A directory inside a file system, relative to its root; empty means the root itself."""

    text: str = ""

    @classmethod
    def parse(cls, value: str, *, field: str) -> Self:
        """Leading and trailing slashes are ignored; every other character is taken literally.

        Raises:
            InvalidRequest: for `.`/`..` components, control characters, or more than 1024 bytes.
        """
        parts = [part for part in value.split("/") if part]
        if not parts:
            return cls()
        if any(part in {".", ".."} for part in parts):
            raise InvalidRequest(f"{field} must not contain '.' or '..' components")
        return cls(text=require_text("/".join(parts), field=field, limit=1024))

    def __truediv__(self, other: "Subpath") -> "Subpath":
        return Subpath(text="/".join(part for part in (self.text, other.text) if part))

    def __str__(self) -> str:
        return f"/{self.text}"

    def __bool__(self) -> bool:
        return bool(self.text)

    def overlaps(self, other: "Subpath") -> bool:
        """True if one of the two is the other or holds it (promise 5)."""
        mine, theirs = PurePosixPath(str(self)), PurePosixPath(str(other))
        return mine.is_relative_to(theirs) or theirs.is_relative_to(mine)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPath:
    """The directory where the orchestrator wants a volume, below the configured pod directory."""

    root: str
    relative: str

    @classmethod
    def parse(cls, value: str, *, root: str) -> Self:
        """CSI gives an absolute path; ours must lie below `root` and be written plainly.

        That no component is a symlink is checked when the path is opened (`shared.mounter.open_directory`).

        Raises:
            InvalidRequest: relative, not plain (`..`, `//`, trailing slash, a name too long), or outside `root`.
        """
        require_text(value, field="target_path", limit=4096)
        if not value.startswith("/"):
            raise InvalidRequest("target_path must be absolute")
        plain = root.rstrip("/")
        parts = value.split("/")[1:]
        if any(part in {"", ".", ".."} or len(part.encode("utf-8", "surrogatepass")) > _NAME_BYTES for part in parts):
            raise InvalidRequest("target_path must not contain '.', '..', empty or overlong components")
        if not value.startswith(f"{plain}/"):
            raise InvalidRequest(f"target_path is outside {root}, the directory this node service was given")
        return cls(root=root, relative=value.removeprefix(f"{plain}/"))

    def __str__(self) -> str:
        return f"{self.root.rstrip('/')}/{self.relative}"


def capacity_in_range(*, required: int, limit: int) -> int:
    """The capacity in bytes that a volume gets: whole GiB, since JuiceFS quotas know no less; 0 means no quota.

    Raises:
        InvalidRequest: negative sizes. OutOfRange: no whole number of GiB lies within the range.
    """
    if required < 0 or limit < 0:
        raise InvalidRequest("capacity_range must not be negative")
    if limit and limit < required:
        raise InvalidRequest("capacity_range: limit_bytes is below required_bytes")
    if not required:
        required = min(GIB, limit) if limit else 0
    capacity = -(-required // GIB) * GIB
    if limit and capacity > limit:
        raise OutOfRange(f"capacity_range: the smallest fitting capacity is {capacity} bytes, above limit_bytes")
    return capacity
