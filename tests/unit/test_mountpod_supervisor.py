"""How clients' processes are started, found and ended; `sleep` is the client."""

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.mountpod import launch
from services.mountpod.supervisor import Supervisor, end_all
from shared import alive
from shared.layout import Client

Start = Callable[..., Supervisor]
STUBBORN = 'trap "" TERM; echo; while :; do sleep 1; done'


@pytest.fixture
def paths(tmp_path: Path) -> Client:
    return Client(name="v-abcdef", mount_point=tmp_path, directory=tmp_path)


@pytest.fixture
async def start(paths: Client) -> AsyncIterator[Start]:
    """Starts a client; whatever is started has ended afterwards."""

    def spawn(*argv: str, on_exit: Callable[[], None] = lambda: None) -> Supervisor:
        lock = alive.lock(paths.alive)
        assert lock is not None
        try:
            return Supervisor.spawn(argv, {"PATH": os.environ["PATH"]}, log=paths.log, alive=lock, on_exit=on_exit)
        finally:
            os.close(lock)

    yield spawn
    assert await end_all(paths.alive, grace=0.0)


async def said_something(paths: Client) -> None:
    """Wait until the client runs."""
    async with asyncio.timeout(5):
        while not paths.log.exists() or not paths.log.read_text():
            await asyncio.sleep(0.01)


async def test_an_exit_is_told(start: Start) -> None:
    """The exit code is that of the client, and whoever waits is woken."""
    told = asyncio.Event()
    supervisor = start("/bin/sh", "-c", "exit 3", on_exit=told.set)
    await asyncio.wait_for(told.wait(), 5)
    assert (supervisor.gone.is_set(), supervisor.exit_code) == (True, 3)


async def test_a_signal_is_told_as_a_shell_does(start: Start) -> None:
    supervisor = start("/bin/sleep", "60")
    os.kill(supervisor.pid, signal.SIGKILL)
    await asyncio.wait_for(supervisor.over(), 5)
    await asyncio.wait_for(supervisor.gone.wait(), 5)
    assert supervisor.exit_code == 128 + signal.SIGKILL


async def test_a_client_is_found_by_the_file_that_it_holds(start: Start, paths: Client) -> None:
    """After a restart of mountpod: no number was written down anywhere."""
    supervisor = start("/bin/sleep", "60")
    supervisor.release()
    found = Supervisor.find(paths.alive, lambda: None)
    assert found is not None
    assert found.pid == supervisor.pid
    found.release()


async def test_nothing_is_found_where_nothing_lives(paths: Client) -> None:
    assert Supervisor.find(paths.alive, lambda: None) is None


async def test_all_processes_of_a_client_end(start: Start, paths: Client) -> None:
    """Also a child whose supervisor is gone already: its file tells."""
    supervisor = start("/bin/sh", "-c", "sleep 60 & echo; exec sleep 60")
    await said_something(paths)
    os.kill(supervisor.pid, signal.SIGKILL)
    await asyncio.wait_for(supervisor.gone.wait(), 5)
    assert alive.is_alive(paths.alive)
    assert await end_all(paths.alive, grace=0.0)
    assert not alive.is_alive(paths.alive)


async def test_who_does_not_listen_is_killed(start: Start, paths: Client) -> None:
    """SIGTERM first, SIGKILL when the grace has passed."""
    supervisor = start("/bin/sh", "-c", STUBBORN)
    await said_something(paths)
    assert await end_all(paths.alive, grace=0.3)
    await asyncio.wait_for(supervisor.gone.wait(), 5)
    assert supervisor.exit_code == 128 + signal.SIGKILL


async def test_a_client_ends_by_itself_if_it_does(start: Start) -> None:
    """The patience is for the client whose mount was closed: it needs no signal."""
    supervisor = start("/bin/sh", "-c", "exit 0")
    await supervisor.end(patience=5.0, grace=0.0)
    assert supervisor.exit_code == 0


async def test_a_lock_that_nobody_seen_holds_is_left(paths: Client) -> None:
    """A client in another pid namespace is not taken for dead; here the lock is not held where a client would."""
    lock = alive.lock(paths.alive)
    assert lock is not None
    elsewhere = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(lock)
    assert not await end_all(paths.alive, grace=0.0)
    os.close(elsewhere)


async def test_the_socket_of_another_client_is_not_removed(start: Start, paths: Client) -> None:
    """The number in the name may be another client's by now."""
    supervisor = start("/bin/sleep", "60")
    socket = Path(f"/tmp/fuse_fd_comm.{supervisor.pid}")
    socket.touch()
    paths.own_socket.symlink_to(socket)
    launch.remove_own_socket(paths)
    assert (socket.exists(), paths.own_socket.is_symlink()) == (True, False)
    socket.unlink()


async def test_a_client_inherits_nothing_of_the_environment(
    start: Start, paths: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what it is given: the service's own secrets are not a tenant's client's business."""
    monkeypatch.setenv("JUICEFS_CSI_NATS_PASSWORD_FILE", "marker")
    supervisor = start("/usr/bin/env")
    await asyncio.wait_for(supervisor.gone.wait(), 5)
    assert paths.log.read_text().splitlines() == [f"PATH={os.environ['PATH']}"]
