"""The credentials of clients: left in the spool by a publish, kept beside the client that was started with them.

The bus carries only their digest, so whatever is read is checked against it: a file that was cut short, or is another
client's, is never used.
"""

import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import orjson

from shared.errors import InvalidRequest, NotReady
from shared.filesystem import Filesystem, credentials_digest
from shared.layout import Client as ClientPaths
from shared.layout import Layout
from shared.private_file import write_private

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPOOL_AGE: Final = 600.0
"""Seconds that a publish's credentials wait for their client."""


class Credentials:
    """Reads and keeps credentials; never holds them in memory itself."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def spooled(self, digest: str) -> Filesystem:
        """The file system that a publish's credentials open.

        Raises:
            InvalidRequest: not a digest, or no file system's credentials. NotReady: they are not here.
        """
        return Filesystem.parse(self._read(self._spool(digest), digest)[0])

    def keep(self, paths: ClientPaths, digest: str) -> Filesystem:
        """The same, from the client's own copy, which is made from the spool when it is missing."""
        try:
            secrets, _ = self._read(paths.credentials, digest)
        except NotReady:
            secrets, content = self._read(self._spool(digest), digest)
            write_private(paths.credentials, content)
        return Filesystem.parse(secrets)

    def sweep(self, wanted: Collection[str]) -> None:
        """Remove spooled credentials that no client took in ten minutes; `wanted` digests stay."""
        oldest = time.time() - _SPOOL_AGE
        for path in self._layout.credentials("").parent.glob("*"):
            with suppress(FileNotFoundError):
                if path.stem not in wanted and path.lstat().st_mtime < oldest:
                    path.unlink()

    def _spool(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequest("credentials must be a digest of 64 hex characters")
        return self._layout.credentials(digest)

    def _read(self, path: Path, digest: str) -> tuple[dict[str, str], bytes]:
        try:
            content = path.read_bytes()
            secrets = orjson.loads(content)
        except (FileNotFoundError, orjson.JSONDecodeError):
            secrets, content = None, b""
        if not isinstance(secrets, dict) or credentials_digest(secrets) != digest:
            raise NotReady("the credentials of this publish are not in the run directory: publish again")
        return secrets, content
