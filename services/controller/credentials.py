"""What the controller does with the Secrets that StorageClasses and PersistentVolumes name."""

from collections.abc import Mapping
from typing import Any, Final

from shared.errors import NotFound
from shared.filesystem import Filesystem
from shared.kubernetes import SECRETS, Kubernetes
from shared.secret_ref import SecretRef

FINALIZER: Final = "juicefs.com/finalizer"


class Credentials:
    """Reads Secrets, and holds them while a volume needs them."""

    def __init__(self, api: Kubernetes) -> None:
        self._api = api

    async def filesystem(self, ref: SecretRef) -> Filesystem:
        """The file system that a Secret describes.

        Raises:
            NotFound: there is no such Secret. InvalidRequest: it is malformed; the key is named.
        """
        return await ref.filesystem(self._api)

    async def hold(self, ref: SecretRef) -> None:
        """From now on it stays until `release`, whoever deletes it."""
        secret = await ref.get(self._api)
        finalizers = secret["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            await self._put(ref, secret, [*finalizers, FINALIZER])

    async def release(self, ref: SecretRef) -> None:
        """Undo `hold`; no error if it is gone."""
        try:
            secret = await ref.get(self._api)
            finalizers = secret["metadata"].get("finalizers") or []
            if FINALIZER in finalizers:
                await self._put(ref, secret, [one for one in finalizers if one != FINALIZER])
        except NotFound:
            return

    async def _put(self, ref: SecretRef, secret: Mapping[str, Any], finalizers: list[str]) -> None:
        """Only over what was read: others have finalizers too."""
        metadata = {"resourceVersion": secret["metadata"]["resourceVersion"], "finalizers": finalizers}
        await self._api.patch(SECRETS, ref.name, {"metadata": metadata}, namespace=ref.namespace)
