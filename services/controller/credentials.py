"""The Secrets that StorageClasses and PersistentVolumes name: read by name when they are needed, and kept nowhere."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from services.controller.templates import SECRET_PREFIX
from shared.errors import InvalidRequest, NotFound
from shared.filesystem import Filesystem
from shared.kubernetes import SECRETS, Kubernetes

FINALIZER: Final = "juicefs.com/finalizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where a Secret is; prints as `namespace/name`."""

    namespace: str
    name: str

    @classmethod
    def of(cls, parameters: Mapping[str, str], purpose: str) -> Self | None:
        """The one that `csi.storage.k8s.io/<purpose>-secret-{name,namespace}` names; None without either.

        Raises:
            InvalidRequest: one of the two is missing.
        """
        keys = [f"{SECRET_PREFIX}{purpose}-secret-{part}" for part in ("namespace", "name")]
        namespace, name = (parameters.get(key, "") for key in keys)
        if not namespace and not name:
            return None
        if not namespace or not name:
            raise InvalidRequest(f"parameter {keys[bool(namespace)]} is empty: it is required")
        return cls(namespace=namespace, name=name)

    def to_json(self) -> dict[str, str]:
        return {"namespace": self.namespace, "name": self.name}

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Credentials:
    """Reads Secrets, and holds them while a volume needs them."""

    def __init__(self, api: Kubernetes) -> None:
        self._api = api

    async def filesystem(self, ref: SecretRef) -> Filesystem:
        """The file system that a Secret describes.

        Raises:
            NotFound: there is no such Secret. InvalidRequest: it is malformed; the key is named.
        """
        secret = await self._get(ref)
        try:
            return Filesystem.parse(_decoded(secret))
        except InvalidRequest as error:
            raise InvalidRequest(f"Secret {ref}: {error}") from None

    async def hold(self, ref: SecretRef) -> None:
        """From now on it stays until `release`, whoever deletes it."""
        secret = await self._get(ref)
        finalizers = secret["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            await self._put(ref, secret, [*finalizers, FINALIZER])

    async def release(self, ref: SecretRef) -> None:
        """Undo `hold`; no error if it is gone."""
        try:
            secret = await self._get(ref)
            finalizers = secret["metadata"].get("finalizers") or []
            if FINALIZER in finalizers:
                await self._put(ref, secret, [one for one in finalizers if one != FINALIZER])
        except NotFound:
            return

    async def _get(self, ref: SecretRef) -> dict[str, Any]:
        try:
            return await self._api.get(SECRETS, ref.name, namespace=ref.namespace)
        except NotFound:
            raise NotFound(f"Secret {ref} does not exist: create it, and the next try will find it") from None

    async def _put(self, ref: SecretRef, secret: Mapping[str, Any], finalizers: list[str]) -> None:
        """Only over what was read: others have finalizers too."""
        metadata = {"resourceVersion": secret["metadata"]["resourceVersion"], "finalizers": finalizers}
        await self._api.patch(SECRETS, ref.name, {"metadata": metadata}, namespace=ref.namespace)


def _decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidRequest(f"secret key {key} is no text") from None
    return found
