"""A Secret of Kubernetes, as StorageClasses and PersistentVolumes name it: read when it is needed, and kept nowhere."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidRequest, NotFound
from shared.filesystem import Filesystem
from shared.kubernetes import SECRETS, Kubernetes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where a Secret is; prints as `namespace/name`."""

    namespace: str
    name: str

    async def get(self, api: Kubernetes) -> dict[str, Any]:
        """The object.

        Raises:
            NotFound: there is no such Secret.
        """
        try:
            return await api.get(SECRETS, self.name, namespace=self.namespace)
        except NotFound:
            raise NotFound(f"Secret {self} does not exist: create it, and the next try will find it") from None

    async def filesystem(self, api: Kubernetes) -> Filesystem:
        """The file system that it describes.

        Raises:
            NotFound: there is no such Secret. InvalidRequest: it is malformed; the key is named.
        """
        secret = await self.get(api)
        try:
            return Filesystem.parse(_decoded(secret))
        except InvalidRequest as error:
            raise InvalidRequest(f"Secret {self}: {error}") from None

    def to_json(self) -> dict[str, str]:
        return {"namespace": self.namespace, "name": self.name}

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidRequest(f"secret key {key} is no text") from None
    return found
