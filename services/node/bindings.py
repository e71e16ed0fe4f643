"""Which client each target was bound to: what the mount table can't tell any more once that client is dead.

A dead mount shows only a device number, and a number that is noted may be another file system's by the time it is read:
the kernel gives it away once its last mount is gone. So the target is noted, as a symbolic link, made and removed in
one step, and read again only after a restart of ours. It is no reference count: a note without a mount counts for
nothing.
"""

import hashlib
from pathlib import Path

from shared.mounttable import MountEntry


class Bindings:
    """Target → mount name, in memory and in a directory on the run directory's tmpfs."""

    def __init__(self, directory: Path, table: list[MountEntry]) -> None:
        """Go on with the notes of before, without those whose target is not mounted any more."""
        self._directory = directory
        self._names: dict[str, str] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounted = {entry.mount_point for entry in table if entry.is_juicefs}
        for note in filter(Path.is_symlink, directory.iterdir()):
            name, _, target = str(note.readlink()).partition(":")
            if target in mounted:
                self._names[target] = name
            else:
                note.unlink()

    def note(self, target: str, name: str) -> None:
        """The target is about to be bound to this client."""
        self.forget(target)
        self._path(target).symlink_to(f"{name}:{target}")
        self._names[target] = name

    def forget(self, target: str) -> None:
        """The target is not bound any more."""
        if self._names.pop(target, None) is not None:
            self._path(target).unlink(missing_ok=True)

    def name(self, target: str) -> str:
        """The client of this target; empty for one that was not bound by us."""
        return self._names.get(target, "")

    def targets(self, name: str) -> set[str]:
        """The targets of this client."""
        return {target for target, bound in self._names.items() if bound == name}

    def _path(self, target: str) -> Path:
        return self._directory / hashlib.sha256(target.encode()).hexdigest()
