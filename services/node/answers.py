"""Which client answered which inputs, so that with mountpod away a publish after a restart of ours finds it again.

Noted as symbolic links, made and removed in one step; one that is wrong does no harm, since a mount that is not there
is asked for.
"""

from pathlib import Path

from shared.layout import Layout


class Answers:
    """Digest of a publication's inputs → mount name, in a directory on the run directory's tmpfs."""

    def __init__(self, layout: Layout) -> None:
        """Go on with the notes of before, without those of clients that have ended."""
        self._directory = layout.answers
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = {note: str(note.readlink()) for note in filter(Path.is_symlink, self._directory.iterdir())}
        clients = set(layout.names())
        for note, name in notes.items():
            if name not in clients:
                note.unlink()
        self._names = {note.name: name for note, name in notes.items() if name in clients}

    def note(self, inputs: str, name: str) -> None:
        if self._names.get(inputs) != name:
            path = self._directory / inputs
            path.unlink(missing_ok=True)
            path.symlink_to(name)
            self._names[inputs] = name

    def name(self, inputs: str) -> str:
        """The client's; empty if nobody ever answered."""
        return self._names.get(inputs, "")

    def forget(self, name: str) -> None:
        """The client has ended."""
        for inputs in [inputs for inputs, known in self._names.items() if known == name]:
            del self._names[inputs]
            (self._directory / inputs).unlink(missing_ok=True)
