"""Files that only we may read, and that a crash leaves whole or not at all."""

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Write a 0600 file that is seen whole or not at all."""
    draft = draft_of(path)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def draft_of(path: Path) -> Path:
    """Where `write_private` writes before the file is seen."""
    return path.with_name(f"{path.name}.new")
