"""What any runtime promises, on real clients and on the fake of the unit tests; then what is of real clients only."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol

import pytest

from services.mountpod.runtime import Runtime
from shared.diagnosis import META_NOT_FORMATTED
from shared.domain import Subpath
from shared.errors import Busy, CommandFailed, DriverError, NotFound, NotReady
from shared.settings import ClientSettings
from tests.contract.machine import Machine, empty_machine, until
from tests.fakes.runtime import FakeRuntime


class Stage(Protocol):
    """A runtime, and what a test must be able to see and to do around it."""

    def running(self) -> AbstractAsyncContextManager[Runtime]: ...

    def wanted(self, volume: str = "pvc-1") -> ClientSettings: ...

    def hopeless(self) -> ClientSettings:
        """Of a client that will end with META_NOT_FORMATTED."""

    def starts(self, name: str) -> int: ...

    def is_mounted(self, name: str) -> bool: ...

    async def close(self, name: str) -> None:
        """What the node does before `end`."""


class Real:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.running = machine.runtime
        self.wanted = machine.publish
        self.close = machine.close

    def hopeless(self) -> ClientSettings:
        return self._machine.publish(storage="", bucket="")

    def starts(self, name: str) -> int:
        return [said.mount for said in self._machine.bus.said if said.client_starting is not None].count(name)

    def is_mounted(self, name: str) -> bool:
        """Served, which is told when the mount is there."""
        ready = [said.mount for said in self._machine.bus.said if said.client_ready is not None].count(name)
        return self._machine.is_mounted(name) and ready == self.starts(name)


class Fake:
    def __init__(self) -> None:
        self._runtime = FakeRuntime()
        self.is_mounted = self._runtime.is_mounted

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        yield self._runtime

    def wanted(self, volume: str = "pvc-1") -> ClientSettings:
        return ClientSettings(volume_id=volume, credentials="0" * 64, subdir=Subpath(text=volume), options=())

    def hopeless(self) -> ClientSettings:
        wanted = self.wanted("hopeless")
        self._runtime.failing[wanted.mount_name] = CommandFailed("no file system", reason=META_NOT_FORMATTED)
        return wanted

    def starts(self, name: str) -> int:
        return self._runtime.starts[name]

    async def close(self, name: str) -> None:
        self._runtime.close(name)


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with empty_machine() as found:
        yield found


@pytest.fixture(params=["processes", "fake"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    if request.param == "fake":
        yield Fake()
        return
    async with empty_machine() as found:
        yield Real(found)


async def test_a_client_is_started_once(stage: Stage) -> None:
    """Promise 12: however many ask at once, there is one client, and all get it."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        await asyncio.gather(*(runtime.ensure(wanted) for _ in range(100)))
        assert runtime.clients() == {wanted.mount_name: wanted}
        await until(lambda: stage.is_mounted(wanted.mount_name))
        await runtime.ensure(wanted)
        assert runtime.clients() == {wanted.mount_name: wanted}
        assert stage.starts(wanted.mount_name) == 1


async def test_two_clients_of_one_name(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 20: six letters that are equal by chance never make two volumes share a client."""
    monkeypatch.setattr(ClientSettings, "mount_name", property(lambda _: "same-abcdef"))
    async with stage.running() as runtime:
        await runtime.ensure(stage.wanted("pvc-1"))
        with pytest.raises(DriverError, match="same-abcdef"):
            await runtime.ensure(stage.wanted("pvc-2"))
        await until(lambda: stage.is_mounted("same-abcdef"))


async def test_a_client_whose_mount_was_closed_ends(stage: Stage) -> None:
    """And the next publish starts another."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        for number in range(2):
            await runtime.ensure(wanted)
            await until(lambda: stage.is_mounted(wanted.mount_name))
            assert stage.starts(wanted.mount_name) == number + 1
            await stage.close(wanted.mount_name)
            await runtime.end(wanted.mount_name)
            await until(lambda: not runtime.clients())
        await runtime.end(wanted.mount_name)


async def test_a_client_that_is_mounted_is_not_ended(stage: Stage) -> None:
    """`end` may come late: when the next client has its mount already."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: stage.is_mounted(wanted.mount_name))
        await runtime.end(wanted.mount_name)
        assert stage.is_mounted(wanted.mount_name)
        assert runtime.clients() == {wanted.mount_name: wanted}


async def test_a_client_asked_for_while_it_ends_starts_again(stage: Stage) -> None:
    """Promise 14: a publish that comes between close and end gets a new client, never the dying one."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: stage.is_mounted(wanted.mount_name))
        await stage.close(wanted.mount_name)
        ending = asyncio.create_task(runtime.end(wanted.mount_name))
        await runtime.ensure(wanted)
        await ending
        await until(lambda: stage.starts(wanted.mount_name) == 2 and stage.is_mounted(wanted.mount_name))


async def test_a_restart_of_what_is_not_there(stage: Stage) -> None:
    """An unknown client is NOT_FOUND, a starting one ABORTED."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        with pytest.raises(NotFound):
            await runtime.restart(wanted.mount_name)
        await runtime.ensure(wanted)
        with pytest.raises(Busy):
            await runtime.restart(wanted.mount_name)


async def test_one_start_per_back_off_step(stage: Stage) -> None:
    """Promise 10: a failure is told to who asks again; only when the next try is due a client is started."""
    wanted = stage.hopeless()
    async with stage.running() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: not runtime.clients())
        for _ in range(20):
            with pytest.raises(CommandFailed) as remembered:
                await runtime.ensure(wanted)
            assert remembered.value.reason == META_NOT_FORMATTED
        assert stage.starts(wanted.mount_name) == 1
        async with asyncio.timeout(5):
            while not runtime.clients():
                with suppress(CommandFailed):
                    await runtime.ensure(wanted)
                await asyncio.sleep(0.02)
        await until(lambda: not runtime.clients())
        assert stage.starts(wanted.mount_name) == 2


async def test_a_look_at_nothing_and_at_something(stage: Stage) -> None:
    """`look` and `retry` may be called at any time, and change nothing that is well."""
    wanted = stage.wanted()
    async with stage.running() as runtime:
        for _ in range(2):
            runtime.look({})
            runtime.retry()
            await runtime.ensure(wanted)
            await until(lambda: stage.is_mounted(wanted.mount_name))
        assert stage.starts(wanted.mount_name) == 1


async def test_ensure_does_not_wait_for_the_mount(machine: Machine) -> None:
    """The bus answers at once; the mount table tells the rest."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        assert not machine.is_mounted(wanted.mount_name)


async def test_a_client_outlives_mountpod(machine: Machine) -> None:
    """After a restart of mountpod the same processes serve, and are kept."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
    before = machine.pids(wanted.mount_name)
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        assert runtime.clients() == {wanted.mount_name: wanted}
        assert machine.pids(wanted.mount_name) == before


async def test_a_client_that_is_killed_is_replaced(machine: Machine) -> None:
    """A client that was mounted and dies comes back at once."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
        before = machine.pids(wanted.mount_name)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)
        assert not set(before) & set(machine.pids(wanted.mount_name))


async def test_a_client_killed_with_mountpod_is_replaced_by_the_next(machine: Machine) -> None:
    """Promise 6: nothing is lost when both die at once."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
    for pid in machine.pids(wanted.mount_name):
        os.kill(pid, signal.SIGKILL)
    async with machine.runtime():
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)


async def test_a_closed_client_ends_and_leaves_nothing(machine: Machine) -> None:
    """After the node unmounted it: no process, no file, no socket."""
    wanted = machine.publish()
    name = wanted.mount_name
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
        socket = machine.layout.client(name).own_socket.readlink()
        await machine.close(name)
        await runtime.end(name)
        await until(lambda: not runtime.clients())
    assert (machine.left(), machine.pids(name), socket.exists()) == ([], [], False)
    assert machine.bus.kinds()[-1] == "MountClosed"


async def test_a_restart_replaces_the_process_and_keeps_the_mount(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 17: replaced in an orderly way, with no new mount."""
    monkeypatch.setattr("services.mountpod.client._SETTLED", 0.0)
    wanted = machine.publish()
    name = wanted.mount_name
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
        before, device = set(machine.pids(name)), machine.device(name)
        await runtime.restart(name)
        assert len(before ^ set(machine.pids(name))) == 2  # one went, one came
        assert machine.device(name) == device


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ({"metaurl": "mysql://me:pw-marker@(127.0.0.1:1)/db"}, "META_UNREACHABLE"),
        ({"storage": "", "bucket": ""}, "META_NOT_FORMATTED"),
    ],
)
async def test_a_failed_start_says_why(machine: Machine, secrets: dict[str, str], reason: str) -> None:
    """Promise 10: a class and the client's last words, secrets masked, to the publish that waits and the next one."""
    wanted = machine.publish(**secrets)
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "MountFailed" in machine.bus.kinds())
        failure = machine.bus.said[-1].mount_failed
        with pytest.raises(CommandFailed) as remembered:
            await runtime.ensure(wanted)
    assert failure is not None
    assert (failure.reason, remembered.value.reason) == (reason, reason)
    assert failure.message
    assert "pw-marker" not in failure.message
    assert machine.left() == []


async def test_credentials_that_are_not_here(machine: Machine) -> None:
    """The publish is to be tried again: the node leaves them anew."""
    wanted = machine.publish()
    machine.layout.credentials(wanted.credentials).unlink()
    async with machine.runtime() as runtime:
        with pytest.raises(NotReady, match="credentials"):
            await runtime.ensure(wanted)


async def test_credentials_of_another_are_refused(machine: Machine) -> None:
    """Promise 20: a file that does not have the digest it is named by is never used."""
    wanted, other = machine.publish(), machine.publish(bucket=f"{machine.root}/other/")
    machine.layout.credentials(other.credentials).replace(machine.layout.credentials(wanted.credentials))
    async with machine.runtime() as runtime:
        with pytest.raises(NotReady, match="credentials"):
            await runtime.ensure(wanted)
