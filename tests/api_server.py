"""A real kube-apiserver on a real etcd for tests: it can be stopped, killed, made silent and started again.

There is no controller manager, no scheduler and no kubelet: a test plays their part where it needs one. Both programs
come from `$CLUSTER_HOME/bin`.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

BIN = Path(os.environ.get("CLUSTER_HOME", "/var/lib/one-node-cluster")) / "bin"
_START = 45.0  # seconds, on a machine that does other things as well


class ApiServer:
    """Listens on one port of the loopback. `kubeconfig` is an administrator's; `nobody` has no rights at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._etcd_port = _free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        _certificates(directory)
        tokens = {"admin": "system:masters", "nobody": "nobodies"}
        self.tokens = {user: token_hex(16) for user in tokens}
        (directory / "tokens.csv").write_text(
            "".join(f'{self.tokens[user]},{user},{user},"{group}"\n' for user, group in tokens.items())
        )
        self.kubeconfig = self.kubeconfig_with(self.tokens["admin"])
        self.nobody = self.kubeconfig_with(self.tokens["nobody"])

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    def kubeconfig_with(self, token: str, *, port: int = 0) -> Path:
        path = self.directory / f"kubeconfig-{token_hex(4)}"
        server = {"server": f"https://127.0.0.1:{port or self.port}", "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    def start(self, *, port: int = 0) -> None:
        """Both programs, with what they stored before; nothing happens to one that runs."""
        if "etcd" not in self._processes:
            self._start("etcd", *self._etcd_options())
        if "kube-apiserver" not in self._processes:
            self._start("kube-apiserver", *self._options(port or self.port))
        deadline = time.monotonic() + _START
        while not self._is_ready(port or self.port):
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"no API server: {ended} ended; {self._last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """The API server, in an orderly way: it says goodbye to its watchers."""
        self._end("kube-apiserver", signal.SIGTERM)

    def kill(self) -> None:
        """The API server, as a machine that loses power."""
        self._end("kube-apiserver", signal.SIGKILL)

    @contextmanager
    def killed(self) -> Iterator[None]:
        """No API server while inside."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        for name in ("kube-apiserver", "etcd"):
            self._end(name, signal.SIGKILL)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The API server keeps its connections, and says nothing."""
        process = self._processes["kube-apiserver"]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    @contextmanager
    def elsewhere(self) -> Iterator[Path]:
        """The API server on another port, with a kubeconfig for it: who knows only the first one finds it away."""
        port = _free_port()
        self.kill()
        self.start(port=port)
        try:
            yield self.kubeconfig_with(self.tokens["admin"], port=port)
        finally:
            self.kill()
            self.start()

    def compact(self) -> None:
        """Let etcd forget its history."""
        head = self._etcd("kv/range", {"key": "Lw=="})["header"]["revision"]
        self._etcd("kv/compaction", {"revision": head, "physical": True})

    def _etcd(self, path: str, body: dict[str, Any]) -> Any:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/{path}"
        with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as answer:
            return json.load(answer)

    def _start(self, program: str, *options: str) -> None:
        with (self.directory / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen([BIN / program, *options], stdout=log, stderr=log)

    def _end(self, program: str, how: signal.Signals) -> None:
        if process := self._processes.pop(program, None):
            process.send_signal(how)
            process.wait()

    def _etcd_options(self) -> list[str]:
        url, peers = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{_free_port()}"
        return [
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=error",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        ]

    def _options(self, port: int) -> list[str]:
        here = self.directory
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={here / 'api.crt'}",
            f"--tls-private-key-file={here / 'api.key'}",
            f"--token-auth-file={here / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={here / 'sa.key'}",
            f"--service-account-signing-key-file={here / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--service-cluster-ip-range=198.19.1.0/24",
            "--endpoint-reconciler-type=none",  # nobody finds it by the Service, and its end is quicker
            "--allow-privileged=true",
            "--disable-admission-plugins=ServiceAccount",  # which wants the controller manager's default account
        ]

    def _is_ready(self, port: int) -> bool:
        request = urllib.request.Request(f"https://127.0.0.1:{port}/readyz")
        request.add_header("Authorization", f"Bearer {self.tokens['admin']}")
        trusted = ssl.create_default_context(cafile=self.ca)
        with suppress(OSError), urllib.request.urlopen(request, timeout=5, context=trusted) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def _last_words(self) -> str:
        return "".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A running server; nothing is left of it afterwards. Without the programs, the test is skipped."""
    missing = [name for name in ("etcd", "kube-apiserver") if not (BIN / name).exists()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} in {BIN}: see $CLUSTER_HOME")
    with tempfile.TemporaryDirectory(prefix="api-server-") as directory:
        server = ApiServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _certificates(directory: Path) -> None:
    """A certificate authority, the API server's certificate, and the key of service account tokens."""
    (directory / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    issue = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test", "-days", "2"],
        ["req", *key, "-keyout", "api.key", "-out", "api.csr", "-subj", "/CN=kube-apiserver"],
        ["x509", "-req", *issue, "-in", "api.csr", "-out", "api.crt", "-extfile", "san"],
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"],
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
