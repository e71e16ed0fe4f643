"""Who else uses a directory: so that no volume is made in another's, and none is deleted under another (promise 5)."""

from collections.abc import Iterable

from services.controller.store import Store
from services.controller.used import Use
from shared.domain import Subpath
from shared.errors import InUse, InvalidRequest, NotFound
from shared.filesystem import Filesystem
from shared.secret_ref import SecretRef


class Sharing:
    """Asks the index, and tells file systems apart where two volumes name them by different Secrets."""

    def __init__(self, store: Store) -> None:
        self._used = store.used
        self._credentials = store.credentials

    async def check_new(self, use: Use, fs: Filesystem) -> None:
        """A new volume may share a directory with volumes of its own StorageClass, as pathPattern can ask.

        Raises:
            InvalidRequest: its directory is, holds, or lies in one that isn't its to use; the other is named.
        """
        equal = (other for other in self._used.at(use.path) if not _is_alike(use, other))
        # Around it may be a static volume: an admin's wider view.
        around = (other for other in self._used.around(use.path) if other.is_provisioned)
        for others, how in (
            (equal, "is the directory"),
            (around, "lies in that"),
            (self._used.inside(use.path), "holds that"),
        ):
            if other := await self._in(fs, others, mine=use):
                raise InvalidRequest(f"directory {use.path} {how} of PersistentVolume {other.name}: choose another one")

    async def keeps(self, use: Use, path: Subpath, fs: Filesystem) -> Use | None:
        """Another volume that has the directory `path` of this one too, or all around it: it must stay.

        Raises:
            InUse: one lies in it.
        """
        if inside := await self._in(fs, self._used.inside(path), mine=use):
            raise InUse(f"PersistentVolume {inside.name} lies in its directory {path}: delete that one first")
        others = (*self._used.of_handle(use.handle), *self._used.at(path), *self._used.around(path))
        return await self._in(fs, others, mine=use)

    def has_secret(self, ref: SecretRef, use: Use) -> bool:
        """True if another volume of the same StorageClass was made with this Secret."""
        return any(
            other.name != use.name and other.storage_class == use.storage_class and other.provisioner == ref
            for other in self._used
        )

    async def _in(self, fs: Filesystem, others: Iterable[Use], *, mine: Use) -> Use | None:
        """The first that is in the same file system, as far as one can know."""
        for other in others:
            if other.name != mine.name and (other.secrets & mine.secrets or await self._may_be(fs, other)):
                return other
        return None

    async def _may_be(self, fs: Filesystem, use: Use) -> bool:
        """False only if its Secret can be read and tells of another file system. It's seldom asked."""
        ref = use.provisioner or use.node_publish
        if ref is None:
            return True
        try:
            other = await self._credentials.filesystem(ref)
        except (NotFound, InvalidRequest):
            return True
        return (other.name, other.address) == (fs.name, fs.address)


def _is_alike(use: Use, other: Use) -> bool:
    return other.is_provisioned and other.storage_class == use.storage_class
