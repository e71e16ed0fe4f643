"""A FUSE file system of JuiceFS' kind that nobody serves: every call into it waits until its connection ends."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared import mounter
from shared.mounttable import JUICEFS


def mount(kind: str, path: Path, data: str) -> None:
    """The system call with its data, which the driver itself never needs."""
    mounter._check(mounter._libc.mount(kind.encode(), bytes(path), kind.encode(), ctypes.c_ulong(0), data.encode()))


@contextmanager
def unserved(path: Path) -> Iterator[None]:
    """Mounted at `path`; the connection ends with the context, the mount stays."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount(JUICEFS, path, f"fd={descriptor},rootmode=40000,user_id=0,group_id=0")
        yield
    finally:
        os.close(descriptor)
