import asyncio
import socket
import stat
from pathlib import Path

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shared.api.csi.v1 import ControllerStub, CreateVolumeRequest, CreateVolumeResponse, Volume
from shared.csi import Endpoint
from shared.errors import InUse, InvalidRequest
from shared.metrics import Metrics
from tests.unit.csi_server import created, serving, socket_path
from tests.waiting import until


@pytest.mark.parametrize("address", ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"])
def test_an_address_is_a_path(address: str) -> None:
    """Orchestrators write the endpoint in these three ways."""
    assert Endpoint(address, [], metrics=Metrics()).path == Path("/run/csi.sock")


@pytest.mark.parametrize("address", ["", "unix://", "tcp://127.0.0.1:1", "/" + "x" * 107])
def test_what_is_no_socket_is_refused(address: str) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidRequest, match="unix socket"):
        Endpoint(address, [], metrics=Metrics())


async def test_a_call_is_answered() -> None:
    """Over the socket, whose directory is made."""
    async with serving() as served:
        reply = await served.controller.create_volume(CreateVolumeRequest(name="v1"))

    assert reply.volume == Volume(volume_id="v1")


async def test_others_may_not_connect() -> None:
    """Whoever can call the socket can mount and delete."""
    async with serving() as served:
        assert stat.S_IMODE(served.endpoint.path.stat().st_mode) == 0o660
        assert [entry.name for entry in served.endpoint.path.parent.iterdir()] == ["csi.sock"]


async def test_a_live_socket_is_not_taken() -> None:
    """A second plugin on the same socket ends with a line that says so; the first one goes on."""
    async with serving() as served:
        with pytest.raises(InUse, match="another process answers"):
            await Endpoint(str(served.endpoint.path), [], metrics=Metrics()).run()
        await served.controller.create_volume(CreateVolumeRequest(name="v1"))


async def test_a_file_is_not_taken() -> None:
    """Only sockets are ever replaced."""
    async with socket_path() as path:
        path.parent.mkdir()
        path.touch()
        with pytest.raises(InUse, match="no socket"):
            await Endpoint(str(path), [], metrics=Metrics()).run()
        assert path.is_file()


async def test_a_socket_left_behind_is_replaced() -> None:
    """As after SIGKILL."""
    async with socket_path() as path:
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        endpoint = Endpoint(str(path), [], metrics=Metrics())
        task = asyncio.create_task(endpoint.run())
        await asyncio.wait_for(endpoint.serving.wait(), 5)
        task.cancel()
        await asyncio.wait({task})


async def test_a_successor_keeps_its_socket() -> None:
    """A plugin that ends removes its own socket only."""
    async with serving() as served:
        served.endpoint.path.unlink()
        served.endpoint.path.touch()
        await served.endpoint.drain(1)
        assert served.endpoint.path.exists()


async def test_the_end_answers_what_runs() -> None:
    """Fifty calls in flight when the service is told to stop: all are answered OK, and the socket is gone."""
    running, release = 0, asyncio.Event()

    async def create(request: CreateVolumeRequest) -> CreateVolumeResponse:
        nonlocal running
        running += 1
        await release.wait()
        return await created(request)

    async with serving(create) as served:
        names = [f"v{number}" for number in range(50)]
        calls = [asyncio.create_task(served.controller.create_volume(CreateVolumeRequest(name=name))) for name in names]
        await until(lambda: running == 50)
        drained = asyncio.create_task(served.endpoint.drain(10))
        await until(lambda: not served.endpoint.path.exists())
        release.set()
        await drained
        served.task.cancel()
        assert [reply.volume for reply in await asyncio.gather(*calls)] == [Volume(volume_id=name) for name in names]


async def test_the_end_refuses_what_comes() -> None:
    """A call that comes while the others finish is to be tried again."""
    release = asyncio.Event()

    async def create(request: CreateVolumeRequest) -> CreateVolumeResponse:
        await release.wait()
        return await created(request)

    async with serving(create) as served:
        first = asyncio.create_task(served.controller.create_volume(CreateVolumeRequest(name="v1")))
        await until(lambda: served.endpoint.in_flight)
        drained = asyncio.create_task(served.endpoint.drain(10))
        await until(lambda: not served.endpoint.path.exists())
        with pytest.raises(GRPCError, match="stopping") as caught:
            await served.controller.create_volume(CreateVolumeRequest(name="v2"))
        release.set()
        await asyncio.gather(first, drained)

    assert caught.value.status is Status.UNAVAILABLE


async def test_the_end_does_not_wait_for_ever() -> None:
    """What is not done within the grace is cut off, and told so."""
    entered = asyncio.Event()

    async def create(request: CreateVolumeRequest) -> CreateVolumeResponse:
        entered.set()
        await asyncio.get_running_loop().create_future()
        return await created(request)

    async with serving(create) as served:
        call = asyncio.create_task(served.controller.create_volume(CreateVolumeRequest(name="v1")))
        await entered.wait()
        await asyncio.wait_for(served.endpoint.drain(0.1), 5)
        served.task.cancel()
        await asyncio.wait({served.task}, timeout=5)
        with pytest.raises(GRPCError, match="stopped before it was done"):
            await call
        assert served.task.done()


async def test_idle_clients_do_not_hold_up_the_end() -> None:
    """Kubelet keeps its connection open."""
    async with serving() as served:
        other = Channel(path=str(served.endpoint.path))
        await ControllerStub(other).create_volume(CreateVolumeRequest(name="v1"))
        await served.endpoint.drain(5)
        served.task.cancel()
        await asyncio.wait({served.task}, timeout=2)
        other.close()
        assert served.task.done()
