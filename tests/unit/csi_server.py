"""A CSI endpoint with a controller that does what a test says, called over a real unix socket."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from grpclib.client import Channel

from shared.api.csi.v1 import ControllerBase, ControllerStub, CreateVolumeRequest, CreateVolumeResponse, Volume
from shared.csi import Endpoint
from shared.metrics import Metrics

Create = Callable[[CreateVolumeRequest], Awaitable[CreateVolumeResponse]]


class Controller(ControllerBase):
    def __init__(self, create: Create) -> None:
        self._create = create

    async def create_volume(self, message: CreateVolumeRequest) -> CreateVolumeResponse:
        return await self._create(message)


@dataclass(kw_only=True)
class Served:
    """The endpoint, and a client of it."""

    endpoint: Endpoint
    controller: ControllerStub
    metrics: Metrics
    task: asyncio.Task[None]


async def created(request: CreateVolumeRequest) -> CreateVolumeResponse:
    return CreateVolumeResponse(volume=Volume(volume_id=request.name))


@asynccontextmanager
async def socket_path() -> AsyncIterator[Path]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="csi-") as directory:
        yield Path(directory) / "plugin" / "csi.sock"


@asynccontextmanager
async def serving(create: Create = created) -> AsyncIterator[Served]:
    async with socket_path() as path:
        metrics = Metrics()
        endpoint = Endpoint(f"unix://{path}", [Controller(create)], metrics=metrics)
        task = asyncio.create_task(endpoint.run())
        await endpoint.serving.wait()
        channel = Channel(path=str(path))
        try:
            yield Served(endpoint=endpoint, controller=ControllerStub(channel), metrics=metrics, task=task)
        finally:
            channel.close()
            task.cancel()
            await asyncio.wait({task})
