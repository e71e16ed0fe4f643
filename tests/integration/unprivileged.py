"""Becoming somebody else, for tests of what needs no privileges."""

import subprocess
import sys
from contextlib import suppress

import pytest

NOBODY = 65534


def python_for(user: int) -> str:
    """An interpreter like this one that the user may run; the test is skipped if there is none."""
    for name in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(PermissionError, FileNotFoundError):
            argv = [name, "-c", "import sys, pathlib; pathlib.Path(sys.argv[1]).read_bytes()", __file__]
            if subprocess.run(argv, user=user, group=user, extra_groups=[], cwd="/", check=False).returncode == 0:
                return name
    pytest.skip("no interpreter that another user may run")
