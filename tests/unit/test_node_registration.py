import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpclib.client import Channel

from services.node.registration import Registration
from shared.api.pluginregistration import InfoRequest, PluginInfo, RegistrationStatus, RegistrationStub
from shared.errors import NotReady
from shared.metrics import Metrics
from tests.waiting import until

NAME = "csi.juicefs.com-reg.sock"


@dataclass(kw_only=True)
class Registering:
    """A node service that registers, and the directory where kubelet looks."""

    plugins: Path
    registration: Registration
    serving: asyncio.Event
    task: asyncio.Task[None]

    @property
    def socket(self) -> Path:
        return self.plugins / NAME

    @asynccontextmanager
    async def kubelet(self) -> AsyncIterator[RegistrationStub]:
        """Calls the socket as soon as it is there, as kubelet does."""
        await until(self.socket.exists)
        channel = Channel(path=str(self.socket))
        try:
            yield RegistrationStub(channel)
        finally:
            channel.close()


@asynccontextmanager
async def registering(*, csi: bool = True, plugins: str = "plugins") -> AsyncIterator[Registering]:
    with tempfile.TemporaryDirectory(prefix="reg-") as directory:
        path, serving = Path(directory) / plugins, asyncio.Event()
        if csi:
            serving.set()
        registration = Registration(directory=path, endpoint="/kubelet/csi.sock", metrics=Metrics(), look=0.02)
        task = asyncio.create_task(registration.run(serving=serving))
        try:
            yield Registering(plugins=path, registration=registration, serving=serving, task=task)
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_kubelet_is_told_what_is_registered() -> None:
    """What node-driver-registrar says, under the same name."""
    async with registering() as node, node.kubelet() as kubelet:
        told = await kubelet.get_info(InfoRequest())

    assert told == PluginInfo(
        type="CSIPlugin", name="csi.juicefs.com", endpoint="/kubelet/csi.sock", supported_versions=["1.0.0"]
    )


async def test_nothing_is_missing_once_kubelet_says_so() -> None:
    """Until then /readyz says what is awaited."""
    async with registering() as node, node.kubelet() as kubelet:
        assert "kubelet has not called" in str(node.registration.missing)
        await kubelet.notify_registration_status(RegistrationStatus(plugin_registered=True))
        assert node.registration.missing is None


async def test_a_refusal_is_told() -> None:
    """With kubelet's own words; when it tries again and takes it, all is well."""
    async with registering() as node, node.kubelet() as kubelet:
        await kubelet.notify_registration_status(RegistrationStatus(error="no such node"))
        assert node.registration.missing == "kubelet refused the driver: no such node"
        await kubelet.notify_registration_status(RegistrationStatus(plugin_registered=True))
        assert node.registration.missing is None


async def test_a_removed_socket_is_made_again() -> None:
    """Kubelet forgot the driver when the socket went, so it is missing until kubelet has called the new one."""
    async with registering() as node:
        async with node.kubelet() as kubelet:
            await kubelet.notify_registration_status(RegistrationStatus(plugin_registered=True))
        node.socket.unlink()
        await until(lambda: node.registration.missing)
        async with node.kubelet() as kubelet:
            await kubelet.notify_registration_status(RegistrationStatus(plugin_registered=True))
        assert node.registration.missing is None


async def test_a_wiped_directory_is_made_again() -> None:
    async with registering() as node:
        await until(node.socket.exists)
        node.socket.unlink()
        node.plugins.rmdir()
        async with node.kubelet() as kubelet:
            assert await kubelet.get_info(InfoRequest())


async def test_a_socket_left_behind_is_replaced() -> None:
    """As after SIGKILL."""
    async with registering(csi=False) as node:
        node.plugins.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(node.socket))
        left = node.socket.stat().st_ino
        node.serving.set()
        await until(lambda: node.socket.stat().st_ino != left)
        async with node.kubelet() as kubelet:
            assert await kubelet.get_info(InfoRequest())


async def test_the_csi_socket_is_served_first() -> None:
    """Kubelet calls NodeGetInfo as soon as it finds the registration."""
    async with registering(csi=False) as node:
        await asyncio.wait({node.task}, timeout=0.1)
        assert not node.plugins.exists()
        node.serving.set()
        await until(node.socket.exists)


async def test_kubelet_sees_one_socket_only() -> None:
    """It would take a draft for another plugin, unless its name is hidden."""
    async with registering() as node:
        await until(node.socket.exists)
        assert [entry.name for entry in node.plugins.iterdir()] == [NAME]


async def test_the_socket_of_another_is_left_alone() -> None:
    """A registrar that runs already keeps its place; we take it when it leaves."""
    async with registering(csi=False) as node:
        node.plugins.mkdir()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(node.socket))
            other.listen()
            node.serving.set()
            await until(lambda: "another process answers" in str(node.registration.missing))
            theirs = node.socket.stat().st_ino
        await until(lambda: node.socket.stat().st_ino != theirs)
        async with node.kubelet() as kubelet:
            assert await kubelet.get_info(InfoRequest())


async def test_an_orderly_end_removes_the_socket() -> None:
    """So that kubelet forgets the driver at once."""
    async with registering() as node:
        await until(node.socket.exists)
        node.task.cancel()
        await asyncio.wait({node.task})
        assert not node.socket.exists()


async def test_a_directory_that_is_gone_ends_the_program() -> None:
    """As a bind of a directory that was removed on the machine: only a new container sees the new one."""
    async with registering(plugins="/proc/self/nothing") as node:
        with pytest.raises(NotReady, match="--registration"):
            await node.task
