"""mount(2) and its kin against the real kernel, with tmpfs in the place of a client's mount."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared import mounter
from shared.domain import TargetPath
from shared.errors import InvalidRequest
from shared.mounttable import MountEntry, MountTable

TABLE = MountTable()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory below which everything is unmounted afterwards."""
    (tmp_path / "pods").mkdir()
    yield tmp_path
    for entry in reversed(TABLE.read()):
        if entry.mount_point.startswith(f"{tmp_path}/") and TABLE.top(entry.mount_point):
            mounter.unmount(entry.mount_point)


def tmpfs(path: Path) -> MountEntry:
    path.mkdir(exist_ok=True)
    mounter._mount("tmpfs", str(path), mounter._MS_NODEV, fs_type="tmpfs")
    (path / path.name).touch()
    return top(path)


def top(path: Path | str) -> MountEntry:
    entry = TABLE.top(str(path))
    assert entry is not None
    return entry


def bound_inside(source: Path, target: Path) -> MountEntry:
    """As kubelet binds a subPath."""
    mounter._check(mounter._libc.mount(bytes(source), bytes(target), None, 0x1000, None))
    return top(target)


def publish(source: MountEntry, target: TargetPath, *, read_only: bool = False) -> None:
    with mounter.open_directory(target, create=True) as directory:
        mounter.bind(source, directory, read_only=read_only)


def target(root: Path, name: str = "a/mount") -> TargetPath:
    return TargetPath.parse(f"{root}/pods/{name}", root=f"{root}/pods")


def test_a_read_only_bind_keeps_the_other_flags(root: Path) -> None:
    """A remount sets all flags anew: nodev of the source must not get lost."""
    publish(tmpfs(root / "one"), target(root), read_only=True)
    assert top(str(target(root))).options >= {"ro", "nodev"}
    assert not top(root / "one").is_read_only


def test_a_dead_mount_is_replaced_and_one_remains(root: Path) -> None:
    """Promise 17: exactly one mount at the target, with the access it had."""
    publish(tmpfs(root / "one"), target(root), read_only=True)
    living = tmpfs(root / "two")
    for _ in range(20):
        mounter.replace(top(str(target(root))), living)
    assert [(entry.device, entry.is_read_only) for entry in TABLE.at(str(target(root)))] == [(living.device, True)]


@contextmanager
def container(*mounted: Path) -> Iterator[Path]:
    """A mount namespace with copies of these, as a container with HostToContainer; its root, as /proc shows it."""
    copies = " && ".join(f'mkdir -p "{path}.copy" && mount --rbind "{path}" "{path}.copy"' for path in mounted)
    script = f"{copies} && mount --make-rslave / && echo ready && read -r end"
    argv = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Path(f"/proc/{process.pid}/root")
        assert process.stdin is not None
        process.stdin.close()


def test_a_container_sees_what_takes_the_place_of_a_dead_mount(root: Path) -> None:
    """Promise 17, with HostToContainer: it has a copy of the dead mount, however often that is replaced."""
    pods = bytes(root / "pods")
    mounter._check(mounter._libc.mount(pods, pods, None, 0x1000, None))
    for propagation in (0x40000, 0x100000):  # shared, and no peer of the root file system
        mounter._check(mounter._libc.mount(None, pods, None, propagation, None))
    writable, read_only = target(root, "a"), target(root, "b")
    publish(tmpfs(root / "one"), writable)
    publish(top(root / "one"), read_only, read_only=True)
    with container(Path(str(writable)), Path(str(read_only))) as inside:
        for living in (tmpfs(root / "two"), tmpfs(root / "three")):
            name = Path(living.mount_point).name
            for path in (str(writable), str(read_only)):
                if len(TABLE.at(path)) > 1:
                    mounter.unmount(path)
                mounter.replace(top(path), living, is_copied=True)
                assert len(TABLE.at(path)) == 2
                assert (inside / f"{path[1:]}.copy" / name).exists()
            assert os.access(inside / f"{str(writable)[1:]}.copy", os.W_OK)
            assert not os.access(inside / f"{str(read_only)[1:]}.copy", os.W_OK)


def test_a_bind_of_a_directory_inside_stays_one(root: Path) -> None:
    """Kubelet binds subPath directories of its own; they are healed to the same directory."""
    one, two = tmpfs(root / "one"), tmpfs(root / "two")
    (root / "one/sub").mkdir()
    (root / "two/sub").mkdir()
    (root / "pods/sub").mkdir()
    mounter.replace(bound_inside(root / "one/sub", root / "pods/sub"), two)
    assert (top(root / "pods/sub").device, top(root / "pods/sub").root) == (two.device, "/sub")
    assert one.device != two.device


def test_a_symlink_inside_a_volume_is_not_followed(root: Path) -> None:
    """A tenant owns what is inside: healing must not bind the machine's own directories."""
    tmpfs(root / "one")
    two = tmpfs(root / "two")
    (root / "one/sub").mkdir()
    (root / "two/sub").symlink_to("/etc")
    (root / "pods/sub").mkdir()
    dead = bound_inside(root / "one/sub", root / "pods/sub")
    with pytest.raises(InvalidRequest):
        mounter.replace(dead, two)
    assert top(root / "pods/sub") == dead


def test_a_symlink_in_the_target_is_refused(root: Path) -> None:
    """Promise 21: nothing is mounted where a symlink leads."""
    (root / "elsewhere").mkdir()
    (root / "pods/link").symlink_to(root / "elsewhere")
    with pytest.raises(InvalidRequest, match="symlink"), mounter.open_directory(target(root, "link/x"), create=True):
        pass
    assert list((root / "elsewhere").iterdir()) == []


def test_a_busy_mount_is_taken_off_all_the_same(root: Path) -> None:
    """Promise 2: unpublish never waits for those who still use the target."""
    publish(tmpfs(root / "one"), target(root))
    with (Path(str(target(root))) / "one").open():
        mounter.unmount(str(target(root)))
        assert TABLE.top(str(target(root))) is None


def test_a_mount_in_use_is_left(root: Path) -> None:
    """The kernel is the arbiter of what is busy."""
    tmpfs(root / "one")
    with (root / "one/one").open():
        assert not mounter.unmount_unused(root / "one")
    assert mounter.unmount_unused(root / "one")


def test_nobody_writes_below_an_empty_mount_point(root: Path) -> None:
    """Promise 1: a lost mount never collects data on the node's disk."""
    point = root / "point"
    mounter.make_mount_point(point)
    mounter.make_mount_point(point)
    assert (point.stat().st_mode & 0o777) == 0
    with pytest.raises(OSError, match="not permitted"):
        (point / "file").touch()
    mounter.remove_mount_point(point)
    assert not point.exists()


async def test_a_change_wakes_who_waits(root: Path) -> None:
    """The kernel signals every mount: nobody polls."""
    table = MountTable()
    watching = asyncio.create_task(table.run())
    await asyncio.sleep(0)
    async with table.changes() as changed:
        tmpfs(root / "one")
        await asyncio.wait_for(changed.wait(), 5)
        changed.clear()
        mounter.unmount(root / "one")
        await asyncio.wait_for(changed.wait(), 5)
    watching.cancel()
