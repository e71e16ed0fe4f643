"""The seccomp filter, run by a small interpreter of BPF."""

import struct

import pytest

from shared.as_root import seccomp_filter

ALLOW, ERRNO_0 = 0x7FFF0000, 0x00050000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {"getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108},
    "aarch64": {"getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177},
}


def answer(program: bytes, *, number: int, architecture: int) -> int:
    call, place, loaded = struct.pack("II", number, architecture), 0, 0
    while True:
        code, on_true, on_false, value = struct.unpack_from("HBBI", program, place * 8)
        place += 1
        match code:
            case 0x20:
                loaded = struct.unpack_from("I", call, value)[0]
            case 0x15:
                place += on_true if loaded == value else on_false
            case 0x06:
                return int(value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_only_who_am_i_is_answered(machine: str) -> None:
    """Every other system call is the kernel's business."""
    program = seccomp_filter(machine)
    answered = {n for n in range(600) if answer(program, number=n, architecture=ARCHITECTURE[machine]) == ERRNO_0}

    assert answered == set(CALLS[machine].values())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_of_another_abi_mean_something_else(machine: str) -> None:
    """A 32-bit program of the same machine counts its calls in another way."""
    program = seccomp_filter(machine)

    assert {answer(program, number=n, architecture=0x40000003) for n in range(600)} == {ALLOW}
