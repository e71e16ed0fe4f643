"""Volumes that nobody claims any more: their directory goes, unless it is somebody else's too."""

from services.controller.sharing import Sharing
from services.controller.store import Store
from services.controller.used import Use
from shared.api.juicefs.v1 import VolumeDeleted
from shared.filesystem import Filesystem


class Disposal:
    """Every deletion of a claim's volume comes through here."""

    def __init__(self, store: Store) -> None:
        self._volumes = store.volumes
        self._used = store.used
        self._say = store.say
        self._sharing = Sharing(store)

    async def dispose(self, use: Use, fs: Filesystem, *, is_kept: bool = False) -> bool:
        """The volume is gone; True if its directory went with it. What the driver did not create is left alone.

        Raises:
            InUse: another volume lies in it.
        """
        record = await self._volumes.get(fs, use.handle)
        path = record.path if record else use.path
        async with self._used.locked(path):
            if is_kept or (record and await self._sharing.keeps(use, path, fs)):
                await self._volumes.forget(fs, use.handle)
                is_gone = False
            else:
                is_gone = await self._volumes.delete(fs, use.handle)
            self._used.finish(use)
        if is_gone:
            self._say(VolumeDeleted(), volume_id=use.handle)
        return is_gone
