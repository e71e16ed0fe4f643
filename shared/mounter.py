"""mount(2) and its kin, by syscall: no child process, no path that a tenant could swap under us.

A target is always handled as an open descriptor (`open_directory`), so that a symlink put in its place between check
and use changes nothing. Opening with O_PATH asks a FUSE file system nothing, so none of this hangs on a hung client.
Kernel sources of the rules: mount(2), umount2(2), openat2(2), move_mount(2), ioctl_iflags(2).
"""

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from shared.domain import TargetPath
from shared.errors import DriverError, InvalidRequest
from shared.mounttable import MountEntry, MountTable

_MS_RDONLY: Final = 0x1
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_NOEXEC: Final = 0x8
_MS_PRIVATE: Final = 0x40000
_MNT_DETACH: Final = 0x2
_UMOUNT_NOFOLLOW: Final = 0x8
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_OPEN_TREE_CLONE: Final = 0x1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_AT_EMPTY_PATH: Final = 0x1000
_MOVE_EMPTY_PATHS: Final = 0x4 | 0x40
_MOVE_BENEATH: Final = 0x200
_RESOLVE_NO_MAGICLINKS: Final = 0x2
_RESOLVE_NO_SYMLINKS: Final = 0x4
_RESOLVE_BENEATH: Final = 0x8
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_IMMUTABLE_FL: Final = 0x10
_KERNEL: Final = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
_SLIDES_BENEATH: Final = (6, 5)
_FUSE_CONTROL: Final = "/sys/fs/fuse/connections"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *args: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args))


def _mount(source: str, target: str, flags: int, *, fs_type: str | None = None) -> None:
    kind = fs_type.encode() if fs_type else None
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), None))


@contextmanager
def open_directory(target: TargetPath, *, create: bool) -> Iterator[int]:
    """The target as an O_PATH descriptor; with `create` it and its missing parents are made first.

    Raises:
        InvalidRequest: a component below the pod directory is a symlink or no directory.
        FileNotFoundError: it does not exist and `create` is false.
    """
    root = os.open(target.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if create:
            _make_directories(root, target.relative.split("/"))
        descriptor = _open_beneath(root, target.relative)
    finally:
        os.close(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_directories(root: int, parts: list[str]) -> None:
    for depth in range(1, len(parts) + 1):
        parent = _open_beneath(root, "/".join(parts[: depth - 1])) if depth > 1 else os.dup(root)
        try:
            with suppress(FileExistsError):
                os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
        finally:
            os.close(parent)


def _open_beneath(root: int, relative: str, flags: int = _DIRECTORY) -> int:
    how = struct.pack(
        "QQQ",
        flags,
        0,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    try:
        return _syscall(_SYS_OPENAT2, root, os.fsencode(relative), how, ctypes.c_size_t(len(how)))
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EXDEV, errno.ENOTDIR}:
            raise InvalidRequest("the path contains a symlink, or something that is no directory") from error
        raise


def bind(source: MountEntry, target: int, *, read_only: bool) -> None:
    """Mount what is mounted at `source` at an open target directory as well; seen whole, or not at all."""
    with _open_path(source.mount_point) as root, _clone(root, read_only=read_only) as tree:
        _move(tree, target)


def replace(dead: MountEntry, living: MountEntry, *, is_copied: bool = False) -> None:
    """Put `living` in the place of the mount `dead`, the top one at its mount point; never bare in between.

    The new mount slides beneath the old one, which is then taken off (Linux 6.5); where the kernel can't do that, the
    old one is taken off first. With `is_copied`, copies of the old one are in other mount namespaces, which only see
    what is mounted on it: so it stays, and the new one lies above it. A bind of something inside the file system stays
    one of that: it is looked up, so this may wait for the client, and never through a symlink, since what is inside
    belongs to a tenant.

    Raises:
        InvalidRequest: what was bound is not there any more, as it was.
    """
    inner = "" if dead.root == living.root else dead.root.removeprefix(living.root.rstrip("/")).strip("/")
    with (
        _open_path(living.mount_point) as root,
        _inside(root, inner) as source,
        _clone(source, read_only=dead.is_read_only) as tree,
    ):
        if is_copied:
            with _open_path(dead.mount_point) as top:
                _move(tree, top)
            return
        try:
            with _open_path(dead.mount_point) as top:
                _move(tree, top, flags=_MOVE_BENEATH)
        except OSError as error:
            if error.errno != errno.EINVAL or _KERNEL >= _SLIDES_BENEATH:
                raise
            unmount(dead.mount_point)
            with _open_path(dead.mount_point) as bare:
                _move(tree, bare)
        else:
            unmount(dead.mount_point)


@contextmanager
def _inside(root: int, inner: str) -> Iterator[int]:
    """A directory or file below an open root, itself when `inner` is empty."""
    descriptor = _open_beneath(root, inner, os.O_PATH | os.O_CLOEXEC) if inner else os.dup(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _clone(source: int, *, read_only: bool) -> Iterator[int]:
    """A detached bind of what is open at `source`, as a descriptor; read-only from its first moment (Linux 5.12).

    It is no peer of its source: what is mounted on one target is not to appear on another, which may be read-only.
    """
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH)
    tree = _syscall(_SYS_OPEN_TREE, source, b"", flags)
    try:
        attributes = struct.pack("QQQQ", _MS_RDONLY if read_only else 0, 0, _MS_PRIVATE, 0)
        _syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(len(attributes)))
        yield tree
    finally:
        os.close(tree)


def _move(tree: int, target: int, *, flags: int = 0) -> None:
    _syscall(_SYS_MOVE_MOUNT, tree, b"", target, b"", ctypes.c_uint(_MOVE_EMPTY_PATHS | flags))


@contextmanager
def _open_path(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def unmount(path: str | Path) -> None:
    """Take the top mount off `path`: plainly, or detached when it is busy. Never waits for a file system.

    Raises:
        OSError: EINVAL when nothing is mounted there, ENOENT when nothing is there.
    """
    try:
        _umount(path, 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _umount(path, _MNT_DETACH)


def unmount_unused(path: str | Path) -> bool:
    """Take the mount off `path` unless somebody uses it (the kernel is the arbiter); False when it is busy."""
    try:
        _umount(path, 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _umount(path: str | Path, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | flags))


def make_mount_point(path: Path) -> None:
    """A directory that nobody can write to while nothing is mounted on it, not even root (promise 1)."""
    path.mkdir(mode=0o000, parents=True, exist_ok=True)
    _set_immutable(path, on=True)


def remove_mount_point(path: Path) -> None:
    """rmdir, also when the directory is immutable; a missing one is fine."""
    if path.is_dir():
        _set_immutable(path, on=False)
        path.rmdir()


def _set_immutable(path: Path, *, on: bool) -> None:
    """Not every file system knows the attribute (tmpfs, overlay); mode 0000 remains there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            flags = struct.unpack("l", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]
            wanted = flags | _FS_IMMUTABLE_FL if on else flags & ~_FS_IMMUTABLE_FL
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", wanted))
    finally:
        os.close(descriptor)


@contextmanager
def fuse_control(table: MountTable, own: Path) -> Iterator[Path]:
    """The kernel's list of FUSE connections: where the machine has it, or else mounted at `own` while inside."""
    present = {entry.mount_point for entry in table.read(having=" - fusectl ")}
    if _FUSE_CONTROL in present:
        yield Path(_FUSE_CONTROL)
        return
    own.mkdir(parents=True, exist_ok=True)
    if str(own) not in present:
        _mount("fusectl", str(own), _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, fs_type="fusectl")
    try:
        yield own
    finally:
        unmount(own)
        own.rmdir()


def is_fuse_device(descriptor: int) -> bool:
    """True for an open /dev/fuse: what a client hands in must be nothing else."""
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(10, 229)


def require_privilege() -> None:
    """Mounting needs CAP_SYS_ADMIN; say so at start rather than at the first publish.

    Raises:
        DriverError: one line that names what is missing.
    """
    with Path("/proc/self/status").open(encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if not effective >> 21 & 1:
        raise DriverError("CAP_SYS_ADMIN is needed to mount: run it as root (cap_add: [SYS_ADMIN])")
