"""A real nats-server for tests: it can be stopped, started again, started with an empty store, and made silent."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class NatsServer:
    """Listens on one port of the loopback for as long as the tests run."""

    def __init__(self, store: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._root = store
        self._stores = 0
        self._options = options or ("-js",)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """With what it stored before; nothing happens if it runs."""
        if self._process is not None:
            return
        store = ("-sd", str(self._root / str(self._stores)))
        program = Path(sys.prefix) / "bin" / "nats-server"
        address = ("-a", "127.0.0.1", "-p", str(self.port))
        self._process = subprocess.Popen(
            [program, *address, *store, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("nats-server did not start")

    def start_empty(self) -> None:
        """As a server whose disk was lost."""
        self._stores += 1
        self.start()

    def stop(self) -> None:
        """As a machine that loses power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The server keeps its connections, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False


@contextmanager
def nats_server(*options: str) -> Iterator[NatsServer]:
    """A running server; nothing is left of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="nats-") as store:
        server = NatsServer(Path(store), *options)
        try:
            server.start()
            yield server
        finally:
            server.stop()
