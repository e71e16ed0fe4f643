"""Clients as processes, when they are killed, hung, unmounted by others, or fail in their own way."""

import asyncio
import fcntl
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from services.mountpod import client
from services.mountpod.processes import Processes
from services.mountpod.supervisor import Supervisor
from shared import alive, mounter
from shared.juicefs import Juicefs
from shared.settings import ClientSettings
from tests.contract.machine import Machine, empty_machine, until

RETRYING = """#!/bin/sh
[ "$1" = mount ] || exit 0
echo 'failed to dial after 5 attempts: dial tcp 127.0.0.1:1: connect: connection refused'
exec sleep 60
"""
SILENT = """#!/bin/sh
[ "$1" = mount ] || exit 0
exec sleep 60
"""


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with empty_machine() as found:
        yield found


async def ready(machine: Machine, runtime: Processes, *, times: int = 1) -> ClientSettings:
    """A client that has become ready so often."""
    wanted = machine.publish()
    await runtime.ensure(wanted)
    await until(lambda: machine.bus.kinds().count("ClientReady") >= times)
    return wanted


def kill(*pids: int, number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def supervisor(machine: Machine, name: str) -> int:
    return next(pid for pid in machine.pids(name) if os.getsid(pid) == pid)


async def test_killed_the_moment_it_is_ready(machine: Machine) -> None:
    """Its descriptor may not be handed in yet, and it may be asking its own mount: it comes back all the same."""
    async with machine.runtime() as runtime:
        for times in range(1, 3):
            wanted = await ready(machine, runtime, times=times)
            kill(*machine.pids(wanted.mount_name))
        await ready(machine, runtime, times=3)


async def test_a_supervisor_that_is_killed_alone(machine: Machine) -> None:
    """Its child serves on, but nobody could replace it: a whole client takes its place."""
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
        before = set(machine.pids(wanted.mount_name))
        kill(supervisor(machine, wanted.mount_name))
        await ready(machine, runtime, times=2)
        assert not before & set(machine.pids(wanted.mount_name))


async def test_a_process_that_hangs_in_its_own_mount_holds_up_nobody(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it can't end before its call is answered, and keeps the lock: the next client does not wait for it."""
    locks = kept_locks(monkeypatch)
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
        paths = machine.layout.client(wanted.mount_name)
        await until(lambda: machine.node.keepers[wanted.mount_name].kept)
        with closing(sqlite3.connect(machine.root / "meta.db", isolation_level=None)) as engine:
            engine.execute("BEGIN EXCLUSIVE")  # the client has to wait with what it writes
            argv = ["/bin/mkdir", str(paths.mount_point / "directory")]
            asking = Supervisor.spawn(argv, {}, log=paths.log, alive=locks[0], on_exit=lambda: None)
            await until(lambda: Path(f"/proc/{asking.pid}/wchan").read_text() == "request_wait_answer")
            os.close(locks.pop(0))
            kill(*machine.pids(wanted.mount_name))
        await ready(machine, runtime, times=2)
        os.close(locks.pop())
        await asyncio.wait_for(asking.gone.wait(), 20)


def kept_locks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The locks of all clients from now on, as the `df` inherits it that a client starts now and then."""
    locks: list[int] = []

    def lock(path: Path, own: Callable[[Path], int | None] = alive.lock) -> int | None:
        if (descriptor := own(path)) is not None:
            locks.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10))
        return descriptor

    monkeypatch.setattr(alive, "lock", lock)
    return locks


async def test_a_client_comes_back_without_the_bus(machine: Machine) -> None:
    """Promise 8: NATS is needed for a new client only; the hand-over socket is there."""
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
        await until(lambda: machine.node.keepers[wanted.mount_name].kept)
        machine.bus.is_away = True
        kill(*machine.pids(wanted.mount_name))
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)


async def test_unmounted_by_others_and_unused(machine: Machine) -> None:
    """Nothing is bound, so nobody misses it: files and process go."""
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
        machine.node.forget(wanted.mount_name)
        mounter.unmount(machine.layout.client(wanted.mount_name).mount_point)
        await until(lambda: not runtime.clients())
        assert (machine.left(), machine.bus.kinds()[-1]) == ([], "MountClosed")


async def test_unmounted_by_others_and_in_use(machine: Machine) -> None:
    """Promise 18: while the node reports a target, the client comes back, on the same path."""
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
        machine.node.targets[wanted.mount_name] = ["/pods/one"]
        machine.node.forget(wanted.mount_name)
        mounter.unmount(machine.layout.client(wanted.mount_name).mount_point)
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)
        assert machine.is_mounted(wanted.mount_name)


async def test_what_is_left_of_a_dead_client_is_removed(machine: Machine) -> None:
    """After a start: no process, no mount, no target; so no file."""
    async with machine.runtime() as runtime:
        wanted = await ready(machine, runtime)
    name = wanted.mount_name
    kill(*machine.pids(name))
    await machine.close(name)
    async with machine.runtime() as runtime:
        await until(lambda: not runtime.clients())
    assert machine.left() == []


@pytest.mark.parametrize(("script", "reason"), [(RETRYING, "META_UNREACHABLE"), (SILENT, "UNKNOWN")])
async def test_a_client_that_never_mounts_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, script: str, reason: str
) -> None:
    """Promise 10: redis is retried for ever by the client itself, and not by us; no process is left."""
    monkeypatch.setattr(client, "_COMPLAINT_TIMEOUT", 0.3)
    monkeypatch.setattr(client, "_START_TIMEOUT", 1.0)
    machine.juicefs = Juicefs(binary=machine.root / "juicefs")
    machine.juicefs.binary.write_text(script)
    machine.juicefs.binary.chmod(0o700)
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "MountFailed" in machine.bus.kinds())
    failure = machine.bus.said[-1].mount_failed
    assert failure is not None
    assert (failure.reason, machine.pids(wanted.mount_name), machine.left()) == (reason, [], [])


async def test_no_secret_in_an_argv_or_event(machine: Machine) -> None:
    """Promise 22: keys go by environment, and come back nowhere."""
    wanted = machine.publish(**{"access-key": "access-marker", "secret-key": "secret-marker"})
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in machine.pids(wanted.mount_name)]
        kill(*machine.pids(wanted.mount_name))
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)
    assert len(commands) >= 2
    assert "marker" not in "".join([*commands, *map(str, machine.bus.said)])
