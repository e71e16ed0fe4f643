"""A program that takes itself for root, as the kernel sees it."""

import os
import re
import subprocess

import pytest

from shared import as_root
from tests.integration.unprivileged import NOBODY, python_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run_as_nobody(*argv: str) -> str:
    python = python_for(NOBODY)
    words = [python, "-I", "-S", as_root.__file__, str(os.getpid()), *argv]
    ended = subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, check=False)
    return (ended.stdout + ended.stderr).decode()


def test_it_is_told_that_it_is_root() -> None:
    """All four questions: real and effective, user and group."""
    for option in ("-u", "-ru", "-g", "-rg"):
        assert run_as_nobody("/usr/bin/id", option) == "0\n"


def test_it_is_not_root() -> None:
    """No user, no capability, no way to gain any."""
    status = run_as_nobody("/bin/cat", "/proc/self/status")

    assert re.search(rf"^Uid:(\t{NOBODY}){{4}}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert "NoNewPrivs:\t1" in status
    assert "denied" in run_as_nobody("/bin/cat", "/etc/shadow")


def test_without_its_parent_it_does_not_start() -> None:
    """A parent that was killed in between leaves nothing behind."""
    words = [python_for(NOBODY), "-I", "-S", as_root.__file__, "1", "/bin/echo", "started"]
    ended = subprocess.run(words, capture_output=True, check=False)

    assert ended.returncode != 0
    assert b"started" not in ended.stdout
