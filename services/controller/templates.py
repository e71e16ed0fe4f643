"""Variables in a StorageClass's parameters and mount options, filled in from a claim and a node (behaviour.md 3.4).

What a claim's owner wrote is used literally, once, and only where it keeps to its place: a value that could end a mount
option, leave its directory or close a quotation is refused by the name of the variable, and never shown.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.errors import InvalidRequest

SECRET_PREFIX: Final = "csi.storage.k8s.io/"  # noqa: S105 - of keys

_VARIABLE = re.compile(r"\$\{\.(pvc|PVC|node)\.([^{}]*)\}")
_SECRET_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_ANNOTATION = re.compile(r"pvc\.annotations\['([^']*)'\]")
_CONTROL: Final = r"\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff"
_NO_TEXT = re.compile(f"[{_CONTROL}]")
_NO_OPTION = re.compile(rf"[{_CONTROL},\s]|\$\{{")
# Characters that end a value in a list, in JSON or in YAML.
_NO_PARAMETER = re.compile(rf"[{_CONTROL},\"'`\\{{}}\[\]&*!|>%]|:(\s|$)|(^|\s)#|\$\{{")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A claim or a node, as far as a template can name it; `pod_cidr` is a node's."""

    name: str = ""
    namespace: str = ""
    pod_cidr: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def value(self, what: str) -> str:
        """Of `name`, `labels.some.example/key` and so on; empty where there is none."""
        kind, _, key = what.partition(".")
        match kind:
            case "labels":
                return self.labels.get(key, "")
            case "annotations":
                return self.annotations.get(key, "")
        return {"name": self.name, "namespace": self.namespace, "podCIDR": self.pod_cidr}.get(what, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """The values that variables have for one claim; without a node its variables are empty."""

    claim: Owner
    volume: str
    node: Owner = field(default_factory=Owner)

    def parameter(self, key: str, text: str) -> str:
        """The value of a StorageClass's parameter.

        Raises:
            InvalidRequest: names the parameter and the variable whose value can't stand there.
        """
        if key.startswith(SECRET_PREFIX):
            return self._secret(key, text)
        if key == "pathPattern":
            return self._expand(text, field=key, check=_is_in_its_directory)
        refused = _NO_OPTION if key == "mountOptions" else _NO_PARAMETER
        return self._expand(text, field=f"parameter {key}", check=lambda value, _: not refused.search(value))

    def mount_options(self, text: str) -> list[str]:
        """The options that one entry of a StorageClass's mountOptions holds."""
        filled = self._expand(text, field="mountOptions", check=lambda value, _: not _NO_OPTION.search(value))
        return [option for part in filled.split(",") if (option := part.strip())]

    def _expand(self, text: str, *, field: str, check: Callable[[str, re.Match[str]], bool]) -> str:
        def fill(match: re.Match[str]) -> str:
            owner = self.node if match[1] == "node" else self.claim
            value = owner.value(match[2])
            if value and not check(value, match):
                raise InvalidRequest(f"{field}: the value of {match[0]} has characters that can't be used there")
            return value

        filled = _VARIABLE.sub(fill, text)
        if filled != text and ".." in _components(filled):
            raise InvalidRequest(f"{field}: with the values of its variables it has a component '..'")
        return filled

    def _secret(self, key: str, text: str) -> str:
        """A Secret's name or namespace, in the words of CSI: only an admin's namespaces, never one by annotation."""

        def fill(match: re.Match[str]) -> str:
            names = {"pvc.name": self.claim.name, "pvc.namespace": self.claim.namespace, "pv.name": self.volume}
            if not (annotation := _ANNOTATION.fullmatch(match[1])):
                return names.get(match[1], "")
            if key.endswith("-namespace"):
                raise InvalidRequest(f"parameter {key}: a claim's annotations can't choose the namespace of a Secret")
            return self.claim.annotations.get(annotation[1], "")

        filled = _SECRET_VARIABLE.sub(fill, text)
        if filled and filled != text and not _NAME.fullmatch(filled):
            raise InvalidRequest(f"parameter {key}: with the values of its variables it is no name of a Secret's")
        return filled


def names_node(text: str) -> bool:
    """True if a node's variable is in it."""
    return any(match[1] == "node" for match in _VARIABLE.finditer(text))


def _is_in_its_directory(value: str, match: re.Match[str]) -> bool:
    """A value may bring directories of its own only where the variable is a whole component of the pattern."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    is_whole = (not before or before.endswith("/")) and (not after or after.startswith("/"))
    return not _NO_TEXT.search(value) and ("/" not in value or (is_whole and not {".", ".."} & _components(value)))


def _components(text: str) -> set[str]:
    return set(re.split(r"[/,=:]", text))
