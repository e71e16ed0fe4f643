"""What another life left on this machine: clients of an earlier driver, and mount points of before a reboot."""

from contextlib import suppress
from pathlib import Path

from services.node.bindings import Bindings
from shared import mounter
from shared.layout import Layout
from shared.mounttable import MountTable
from shared.settings import is_mount_name


def adopt(layout: Layout, table: MountTable, bindings: Bindings) -> None:
    """Clients of an earlier driver, which keeps no directory of theirs where we do, and notes no binds."""
    for entry in table.clients():
        name = Path(entry.mount_point).name
        if is_mount_name(name) and entry.mount_point == str(layout.client(name).mount_point):
            client = layout.client(name)
            if not client.directory.is_dir():
                client.directory.mkdir(mode=0o700, parents=True)
                client.kept.touch(mode=0o600)
                for bind in table.clients():
                    is_ours = bool(bindings.name(bind.mount_point))
                    if bind.device == entry.device and bind.mount_point != entry.mount_point and not is_ours:
                        bindings.note(bind.mount_point, name)


def sweep_points(layout: Layout, table: MountTable) -> None:
    """Remove the mount points of clients that a reboot ended: what lay beside them on the tmpfs is gone."""
    known = {*filter(is_mount_name, layout.names()), *(Path(entry.mount_point).name for entry in table.clients())}
    for path in layout.mount_root.glob("*"):
        if is_mount_name(path.name) and path.name not in known:
            with suppress(OSError):
                mounter.remove_mount_point(path)
