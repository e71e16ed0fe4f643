"""What any runtime promises, on real clients. `processes` is the one there is."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from shared.errors import Busy, CommandFailed, NotFound, NotReady
from tests.contract.machine import Machine, empty_machine, until


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with empty_machine() as found:
        yield found


async def test_a_client_is_started_once(machine: Machine) -> None:
    """Promise 12: however many ask at once, there is one client, and all get it."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await asyncio.gather(*(runtime.ensure(wanted) for _ in range(100)))
        await until(lambda: machine.is_mounted(wanted.mount_name))
        assert machine.bus.kinds().count("ClientStarting") == 1


async def test_ensure_does_not_wait_for_the_mount(machine: Machine) -> None:
    """The bus answers at once; the mount table tells the rest."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        async with asyncio.timeout(0.05):
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


async def test_a_client_asked_for_while_it_ends_starts_again(machine: Machine) -> None:
    """Promise 14: a publish that comes between close and end gets a new client, never the dying one."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "ClientReady" in machine.bus.kinds())
        await machine.close(wanted.mount_name)
        ending = asyncio.create_task(runtime.end(wanted.mount_name))
        await runtime.ensure(wanted)
        await ending
        await until(lambda: machine.bus.kinds().count("ClientReady") == 2)


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


async def test_a_restart_of_what_is_not_there(machine: Machine) -> None:
    """An unknown client is NOT_FOUND, a starting one ABORTED."""
    wanted = machine.publish()
    async with machine.runtime() as runtime:
        with pytest.raises(NotFound):
            await runtime.restart(wanted.mount_name)
        await runtime.ensure(wanted)
        with pytest.raises(Busy):
            await runtime.restart(wanted.mount_name)


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


async def test_one_start_per_back_off_step(machine: Machine) -> None:
    """Promise 10: a publish that is tried again and again starts no client again and again."""
    wanted = machine.publish(storage="", bucket="")
    async with machine.runtime() as runtime:
        await runtime.ensure(wanted)
        await until(lambda: "MountFailed" in machine.bus.kinds())
        for _ in range(20):
            with pytest.raises(CommandFailed):
                await runtime.ensure(wanted)
    assert machine.bus.kinds().count("ClientStarting") == 1


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
