"""The `juicefs` command line, as argv lists: what is run, never how.

No secret stands in an argv as long as the client takes it by environment, and nothing here is ever read by a shell.
"""

import asyncio
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from shared.domain import Secret, Subpath
from shared.errors import NotReady
from shared.filesystem import Filesystem
from shared.settings import ClientSettings

_PROBE_SECONDS: Final = 10.0
_FLAG = re.compile(r"^ +(?:-\w, )?--([a-z][a-z0-9-]*)", re.MULTILINE)
# Nothing on disk, nothing in the background, and never an answer from a cache: others work on the same directories.
_GATEWAY_FLAGS: Final = (
    "--no-usage-report",
    "--no-bgjob",
    "--backup-meta=0",
    "--cache-dir=memory",
    "--cache-size=0",
    "--attr-cache=0",
    "--entry-cache=0",
    "--dir-entry-cache=0",
    "--metrics=127.0.0.1:0",
)
# A command that ends soon spends nearly all of its time on its start, and a third of that on collecting garbage and on
# waking threads. The limit is for the one that turns out to have much to do.
_BRIEF: Final = {"GOGC": Secret("off"), "GOMEMLIMIT": Secret("256MiB"), "GOMAXPROCS": Secret("1")}
# Everything else in a service's environment is the service's own business, not that of a tenant's client.
_INHERITED = re.compile(r"PATH|HOME|TZ|LANG|LC_\w+|TMPDIR|SSL_CERT_(?:FILE|DIR)|(?:https?|no|all)_proxy", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One run of the client. `environment` goes on top of what is inherited, `marks` are masked in what it prints.

    A negative umask leaves it as it is.
    """

    argv: tuple[str, ...]
    environment: dict[str, Secret]
    marks: tuple[Secret, ...]
    umask: int = -1

    def whole_environment(self) -> dict[str, str]:
        """For the call that starts the process, and nothing else."""
        inherited = {key: value for key, value in os.environ.items() if _INHERITED.fullmatch(key)}
        return inherited | {key: value.reveal() for key, value in self.environment.items()}


class Juicefs:
    """Builds the commands. `mount_flags` are the names that `juicefs mount --help` lists: other options go to `-o`."""

    def __init__(self, *, binary: Path, mount_flags: frozenset[str] = frozenset()) -> None:
        self.binary = binary
        self._mount_flags = mount_flags

    @classmethod
    async def probe(cls, binary: Path) -> Self:
        """The client as it is installed.

        Raises:
            NotReady: one line that says what is missing.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                binary, "mount", "--help", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise NotReady(f"no juicefs binary at {binary}") from None
        except OSError as error:
            raise NotReady(f"the juicefs binary at {binary} can't be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            raise NotReady(f"the juicefs binary at {binary} does not answer") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        flags = frozenset(_FLAG.findall(output.decode(errors="replace")))
        if not {"subdir", "metrics"} <= flags:
            raise NotReady(f"the program at {binary} is not a JuiceFS client that can be used here")
        return cls(binary=binary, mount_flags=flags)

    def format(self, fs: Filesystem) -> Command:
        """Makes the file system when it is new, and takes over a changed bucket.

        Without a bucket it only checks that the file system is there: the client would make a new one on its own
        local disk. Keys come by environment, of which the client takes notice for a new file system only.
        """
        if not fs.bucket and "bucket" not in dict(fs.format_options):
            return self.show(fs)
        options = [("no-update", "")] if not (fs.storage and fs.bucket) else []
        options += [(key, value) for key, value in (("storage", fs.storage), ("bucket", fs.bucket)) if value]
        return self._brief(fs, "format", fs.address, fs.name, *_flags([*options, *fs.format_options]))

    def quota_set(self, fs: Filesystem, path: Subpath, *, gib: int) -> Command:
        """Makes the directory when it is not there, for everybody to use, and sets its capacity; 0 sets no limit."""
        words = ("quota", "set", fs.address, f"--path={path}", f"--capacity={gib}", "--create")
        return replace(self._brief(fs, *words), umask=0)

    def quota_get(self, fs: Filesystem, path: Subpath) -> Command:
        """Prints a table with the capacity; fails when the directory or its quota is not there."""
        return self._brief(fs, "quota", "get", fs.address, f"--path={path}")

    def mount(self, fs: Filesystem, settings: ClientSettings, mount_point: Path) -> Command:
        """Serves the file system, or a directory of it, until it is unmounted.

        Metrics go to a free port of the loopback address unless the options say otherwise: clients share a machine.
        """
        options = {"metrics": "127.0.0.1:0"} | dict(settings.options)
        if settings.subdir:
            options["subdir"] = str(settings.subdir)
        own = [(key, value) for key, value in sorted(options.items()) if key in self._mount_flags]
        rest = [_option(key, value) for key, value in sorted(options.items()) if key not in self._mount_flags]
        fuse = ["-o", ",".join(rest)] if rest else []
        # The flags come last, so that one which lacks its value can't swallow the address.
        return self._command(fs, "mount", fs.address, str(mount_point), *fuse, *_flags(own))

    def webdav(self, fs: Filesystem, *, address: str, user: str, password: Secret) -> Command:
        """A WebDAV gateway on `address` ("host:port") to the whole file system."""
        words = ("webdav", fs.address, address, *_GATEWAY_FLAGS)
        credentials = {"WEBDAV_USER": Secret(user), "WEBDAV_PASSWORD": password}
        return self._command(fs, *words, extra=credentials)

    def show(self, fs: Filesystem) -> Command:
        """Prints the settings that the file system holds, secrets left out."""
        return self._brief(fs, "config", fs.address)

    def update_keys(self, fs: Filesystem) -> Command:
        """Stores changed keys. The one command with a secret in its argv: the client takes these in no other way."""
        keys = {"access-key": fs.access_key, "secret-key": fs.secret_key, "session-token": fs.session_token}
        secrets = [(key, value.reveal()) for key, value in keys.items() if value]
        places = [(key, value) for key, value in (("storage", fs.storage), ("bucket", fs.bucket)) if value]
        return self._brief(fs, "config", fs.address, "--yes", *_flags([*places, *secrets]))

    def _brief(self, fs: Filesystem, *words: str) -> Command:
        """One that ends soon. What the file system's Secret says of the environment wins."""
        command = self._command(fs, *words)
        return replace(command, environment=_BRIEF | command.environment)

    def _command(self, fs: Filesystem, *words: str, extra: Mapping[str, Secret] | None = None) -> Command:
        environment = fs.environment | dict(extra or {})
        marks = (*fs.marks, *(extra or {}).values())
        return Command(argv=(str(self.binary), *words), environment=environment, marks=marks)


def _flags(options: Iterable[tuple[str, str]]) -> list[str]:
    return [f"--{_option(key, value)}" for key, value in options]


def _option(key: str, value: str) -> str:
    return f"{key}={value}" if value else key
