"""A client's life as a lock: the client inherits it locked, so it is held for exactly as long as one of its processes.

Unlike a pid it can't be reused, it is seen from another pid namespace, and it survives every restart of ours (flock(2):
the lock belongs to the open file description, which fork and exec pass on).
"""

import fcntl
import os
from pathlib import Path


def lock(path: Path) -> int | None:
    """Lock `path` for a client that is about to start: a descriptor to pass on, or None while another lives."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_alive(path: Path) -> bool:
    """True while a client holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
