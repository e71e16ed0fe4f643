"""The driver on this machine, without Kubernetes: nats-server and the services as processes in a directory of its own.

The demo, the tests and the benchmarks all stand on it, so that what they run is what a user runs.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from grpclib.client import Channel

from shared import mounter
from shared.layout import Layout
from shared.mounttable import MountTable

START_TIMEOUT = 20.0
STOP_TIMEOUT = 15.0


def program(name: str) -> str:
    """A program of this virtual environment, or of the machine.

    Raises:
        FileNotFoundError: names it.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: run `make venv`")
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(kw_only=True)
class Driver:
    """Processes, sockets and directories below `base`; `node` is the name of this machine on the bus.

    `left` is what the services had left when all of them had ended, before anything was swept.
    """

    base: Path
    node: str = "local"
    grace: float = 60.0
    nats_port: int = field(default_factory=free_port)
    health_ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return Layout(mount_root=self.base / "volume", run=self.base / "run")

    @property
    def pods(self) -> Path:
        return self.base / "pods"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    @property
    def secrets(self) -> dict[str, str]:
        """The Secret of a throwaway file system: sqlite3 for metadata, a directory for objects."""
        return {
            "name": "demo",
            "metaurl": f"sqlite3://{self.base}/meta.db",
            "storage": "file",
            "bucket": f"{self.base}/objects/",
        }

    @property
    def mount_options(self) -> str:
        """What keeps a client's cache below our directory too."""
        return f"cache-dir={self.base}/cache"

    def socket(self, service: str) -> Path:
        return self.base / f"{service}.sock"

    def channel(self, service: str) -> Channel:
        """A gRPC channel to the service's CSI socket; close it."""
        return Channel(path=str(self.socket(service)))

    def log(self, name: str) -> Path:
        return self.base / f"{name}.log"

    def command(self, name: str) -> list[str]:
        """What a user would type to start this service."""
        health = ["--health-address", f"127.0.0.1:{self.health_port(name)}"]
        common = ["--nats", self.nats_url, "--log-format", "json", *health]
        shared = [f"--mount-root={self.layout.mount_root}", f"--run-directory={self.layout.run}"]
        match name:
            case "nats":
                store = str(self.base / "nats")
                return [program("nats-server"), "-a", "127.0.0.1", "-p", str(self.nats_port), "-js", "-sd", store]
            case "controller":
                return [program("juicefs-csi-controller"), "--endpoint", f"unix://{self.socket(name)}", *common]
            case "node":
                own = ["--endpoint", f"unix://{self.socket(name)}", "--pod-directory", str(self.pods)]
                healing = ["--node-id", self.node, "--grace", str(self.grace)]
                return [program("juicefs-csi-node"), *own, *healing, *shared, *common]
            case "mountpod":
                return [program("juicefs-csi-mountpod"), "--node-id", self.node, *shared, *common]
        raise ValueError(name)

    async def start(self, name: str) -> None:
        """Start one process and wait until it serves.

        Raises:
            RuntimeError: it ended, or does not serve after `START_TIMEOUT`; with the end of its log.
        """
        environment = {**os.environ, "JUICEFS_CSI_JUICEFS": program("juicefs")}
        self.log(name).unlink(missing_ok=True)
        with self.log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(name), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.running[name] = process
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self._serves(name):
                    if process.returncode is not None:
                        raise RuntimeError(f"{name} ended at once:\n{self.tail(name)}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise RuntimeError(f"{name} does not serve:\n{self.tail(name)}") from None

    async def _serves(self, name: str) -> bool:
        port = self.nats_port if name == "nats" else self.health_port(name)
        has_nats = "nats" in self.running
        if has_nats and name != "nats" and "connected to NATS" not in self.tail(name, lines=1000):
            return False
        # Without NATS a mountpod lives, but isn't ready.
        path = b"/healthz" if name == "mountpod" and not has_nats else b"/readyz"
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET %s HTTP/1.0\r\n\r\n" % path)
            answer = await reader.readline()
            writer.close()
            return name == "nats" or b" 200 " in answer
        return False

    def health_port(self, name: str) -> int:
        """The port of a service's health and metrics."""
        return self.health_ports.setdefault(name, free_port())

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a process' log."""
        with suppress(FileNotFoundError):
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        return ""

    async def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one process; one that does not end is killed."""
        process = self.running.pop(name, None)
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()

    def clients(self, name: str = "") -> list[int]:
        """The processes of JuiceFS clients below our mount root, of one mount if it is named."""
        return processes(f"{self.layout.mount_root}/{name}")

    def leftovers(self) -> list[str]:
        """Mounts and client processes below our directory: what must not be there at the end."""
        mounts = [entry.mount_point for entry in MountTable().read() if entry.mount_point.startswith(f"{self.base}/")]
        return mounts + [f"process {pid}" for pid in processes(str(self.base))]

    def sweep(self) -> None:
        """Whatever happened: no process and no mount of ours survives."""
        for pid in processes(str(self.base)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for entry in reversed(MountTable().read()):
            if entry.mount_point.startswith(f"{self.base}/"):
                with suppress(OSError):
                    mounter.unmount(entry.mount_point)
        for name in self.layout.names() if self.layout.clients.is_dir() else []:
            with suppress(OSError):
                mounter.remove_mount_point(self.layout.client(name).mount_point)


def processes(text: str, *, program: str = "") -> list[int]:
    """The processes whose command line holds `text`, and runs `program` if one is named; not this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                # A client that rewrites its title separates its words by spaces.
                words = (entry / "cmdline").read_bytes().replace(b" ", b"\0")
                runs = Path(os.fsdecode(words.partition(b"\0")[0])).name
                if text.encode() in words and program in {"", runs}:
                    found.append(int(entry.name))
    return found


@asynccontextmanager
async def local_driver(*services: str, grace: float = 60.0) -> AsyncIterator[Driver]:
    """A driver with these processes running, in order; at the end nothing of it is left."""
    base = Path(tempfile.mkdtemp(prefix="jfs-", dir="/tmp"))  # short: a unix socket's path has 108 bytes
    base.chmod(0o755)
    driver = Driver(base=base, grace=grace)
    async with AsyncExitStack() as stack:
        stack.callback(_remove, driver)
        for directory in (driver.pods, driver.layout.mount_root, driver.layout.run):
            directory.mkdir(parents=True)
        for name in services or ("nats", "controller", "mountpod", "node"):
            stack.push_async_callback(driver.stop, name)
            await driver.start(name)
        yield driver


def _remove(driver: Driver) -> None:
    """Delete the directory, once nothing is mounted below it: never a file of a file system."""
    driver.left = driver.leftovers()
    driver.sweep()
    if not driver.leftovers():
        shutil.rmtree(driver.base, ignore_errors=True)
