"""A real kube-apiserver with its etcd for tests: objects and rights are real, but nothing acts on them."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.rendering import binary

_TOKEN = "of-the-tests"
_TIMEOUT = 60  # seconds


class ApiServer:
    """Listens on the loopback for as long as the tests run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self._etcd, self._peers = (_free_port() for _ in range(3))
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def authority(self) -> str:
        """Whom its clients trust, as PEM."""
        return (self.directory / "apiserver.crt").read_text()

    def kubectl(self, *arguments: str | Path, user: str = "") -> subprocess.CompletedProcess[str]:
        """As the administrator, or as somebody else."""
        options = (f"--server=https://127.0.0.1:{self.port}", f"--token={_TOKEN}", "--insecure-skip-tls-verify")
        whom = (f"--as={user}",) if user else ()
        return subprocess.run(
            [_program("kubectl"), *options, *whom, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            env={"HOME": str(self.directory), "PATH": "/usr/bin:/bin"},
        )

    def start(self) -> None:
        (self.directory / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
        key = self.directory / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        client, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peers}"
        self._spawn(
            "etcd",
            *("--data-dir", self.directory / "etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
            ),
        )
        self._spawn(
            "kube-apiserver",
            *("--etcd-servers", client, "--cert-dir", self.directory, "--secure-port", str(self.port)),
            *("--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none"),
            *("--token-auth-file", self.directory / "tokens.csv", "--authorization-mode", "RBAC"),
            *("--service-account-key-file", key, "--service-account-signing-key-file", key),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--allow-privileged=true"),
        )
        deadline = time.monotonic() + _TIMEOUT
        while not self._is_ready():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"the API server did not start: see {self.directory}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _is_ready(self) -> bool:
        """With the rights and namespaces that it makes by itself."""
        asked = (("get", "--raw", "/readyz"), ("get", "namespace", "kube-system", "default"))
        return not any(self.kubectl(*words).returncode for words in asked)

    def _spawn(self, name: str, *arguments: str | Path) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen([_program(name), *arguments], stdout=log, stderr=log))


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A running server; skips where its programs are not."""
    for name in ("etcd", "kube-apiserver", "kubectl"):
        if binary(name) is None:
            pytest.skip(f"{name} is neither on PATH nor built for the one-node cluster")
    with tempfile.TemporaryDirectory(prefix="api-") as directory:
        server = ApiServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _program(name: str) -> Path:
    program = binary(name)
    assert program is not None
    return program


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
