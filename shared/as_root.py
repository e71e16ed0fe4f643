"""Runs a program that takes itself for root, without giving it any privilege: docs/adr/0002-webdav-as-unprivileged.md.

    python -I -S as_root.py <pid of the parent> <program> <argument>...

The program dies with its parent, can gain no privileges, makes files for its own user only, and is told 0 when it asks
who it is. Only asking is changed: the kernel checks the real user, as before. Nothing but the standard library is used
here, so that a start takes little time.
"""

import ctypes
import os
import platform
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO_0 = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
# The audit architecture, and the numbers of getuid, getgid, geteuid, getegid (seccomp(2), syscalls(2)).
_CALLS = {
    "x86_64": (0xC000003E, (102, 104, 107, 108)),
    "aarch64": (0xC00000B7, (174, 175, 176, 177)),
}


def seccomp_filter(machine: str) -> bytes:
    """A BPF program that answers 0 to the four questions of the machine's own ABI, and allows everything."""
    architecture, calls = _CALLS[machine]
    questions = [(_JUMP_IF_EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _NUMBER),
        *questions,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO_0),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def main(parent: int, argv: list[str]) -> None:
    """Become the program; raises OSError when the kernel refuses a step."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent has ended already")
    os.umask(0o077)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    program = ctypes.create_string_buffer(seccomp_filter(platform.machine()))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(program))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))
    os.execv(argv[0], argv)  # noqa: S606 - no shell is what we want


def _prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padding = [ctypes.c_ulong(0)] * (4 - len(arguments))
    first = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    if libc.prctl(option, *first, *padding) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
