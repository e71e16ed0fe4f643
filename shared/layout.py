"""Where things lie on one machine: the paths that node and mountpod share.

    <mount root>/<mount name>            the client's own mount point          (node makes and removes it)
    <run>/clients/<mount name>/          what belongs to that client, 0700     (node makes and removes it)
        comm.sock                        hand-over socket, JFS_SUPER_COMM      (node listens)
        alive                            locked by the client while it lives   (mountpod creates, the client holds)
        client.json                      what the client was started with      (mountpod)
        credentials.json                 its credentials, 0600                 (mountpod)
        client.log                       what the client printed               (mountpod)
        fuse_fd_comm                     symlink to the client's own socket    (mountpod)
    <run>/targets/<digest>               which client a target was bound to    (node)
    <run>/answers/<digest>               which client answered which inputs    (node)
    <run>/credentials/<digest>.json      credentials of a publish, 0600        (node writes, mountpod takes)

A client that is a pod has its directory as /tmp, so its own sockets and `alive` lie there without anybody's help:

        kept                             the directory is to stay; whose client it is            (node)
        served                           an empty file: when a client handed its descriptor in  (node; the pod looks)
        leaving                          an empty file: the client makes way for another        (the client's pod)
        resume                           session and file of a client that made way, two lines   (node, for the next)
        fuse_fd_comm.<pid>, state<pid>.json, formatted, address, began                           (the client's pod)

<run> is on a tmpfs: it is gone after a reboot, as the mounts are.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The paths of one client, by its mount name."""

    name: str
    mount_point: Path
    directory: Path

    @property
    def comm_socket(self) -> Path:
        return self.directory / "comm.sock"

    @property
    def alive(self) -> Path:
        return self.directory / "alive"

    @property
    def state(self) -> Path:
        return self.directory / "client.json"

    @property
    def credentials(self) -> Path:
        return self.directory / "credentials.json"

    @property
    def log(self) -> Path:
        return self.directory / "client.log"

    @property
    def own_socket(self) -> Path:
        return self.directory / "fuse_fd_comm"

    @property
    def own_sockets(self) -> list[Path]:
        """Where the client, or one before it, listens: the newest first."""
        found = [path.resolve() for path in self.directory.glob("fuse_fd_comm*") if path.exists()]
        return sorted(found, key=lambda path: -path.stat().st_ctime_ns)

    @property
    def is_claimed(self) -> bool:
        """True while somebody is to start, or to bring back, this client."""
        return self.state.exists() or self.kept.exists()

    def remove_notes(self) -> None:
        """Remove what the node itself puts here for any client."""
        for path in (self.comm_socket, self.served):
            path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a client left in its /tmp, and the mark that keeps it; a directory stays unless it is empty."""
        for path in sorted(self.directory.iterdir(), key=lambda path: path == self.kept):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                with suppress(OSError):
                    path.rmdir()

    @property
    def kept(self) -> Path:
        return self.directory / "kept"

    @property
    def address(self) -> Path:
        return self.directory / "address"

    @property
    def served(self) -> Path:
        return self.directory / "served"

    @property
    def leaving(self) -> Path:
        return self.directory / "leaving"

    @property
    def resume(self) -> Path:
        return self.directory / "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Both roots; `mount_root` must be a directory that propagates mounts, `run` a tmpfs."""

    mount_root: Path = Path("/var/lib/juicefs/volume")
    run: Path = Path("/run/juicefs-csi")

    @property
    def clients(self) -> Path:
        return self.run / "clients"

    @property
    def targets(self) -> Path:
        return self.run / "targets"

    @property
    def answers(self) -> Path:
        return self.run / "answers"

    def client(self, name: str) -> Client:
        """The paths of the client with this mount name (`shared.settings.mount_name`)."""
        return Client(name=name, mount_point=self.mount_root / name, directory=self.clients / name)

    def credentials(self, digest: str) -> Path:
        """Where a publish leaves the credentials with this digest for mountpod."""
        return self.run / "credentials" / f"{digest}.json"

    def names(self) -> list[str]:
        """The mount names that have a client directory, sorted."""
        if not self.clients.is_dir():
            return []
        return sorted(entry.name for entry in self.clients.iterdir() if entry.is_dir())
