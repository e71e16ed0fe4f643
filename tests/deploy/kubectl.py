"""kubectl against the API server of the tests."""

import subprocess
from pathlib import Path

import pytest

from tests.api_server import ApiServer
from tests.deploy.rendering import binary

_TIMEOUT = 60  # seconds


class Kubectl:
    """Speaks as the administrator, or as somebody else."""

    def __init__(self, server: ApiServer) -> None:
        program = binary("kubectl")
        if program is None:
            pytest.skip("kubectl is neither on PATH nor built for the one-node cluster")
        self.server = server
        self._program = program

    def __call__(self, *arguments: str | Path, user: str = "") -> subprocess.CompletedProcess[str]:
        whom = (f"--as={user}",) if user else ()
        return subprocess.run(
            [self._program, f"--kubeconfig={self.server.kubeconfig}", *whom, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            env={"HOME": str(self.server.directory), "PATH": "/usr/bin:/bin"},
        )
