"""Plays the orchestrator: the CSI calls that Kubernetes would make, over the same sockets."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from grpclib.client import Channel

from shared.api.csi.v1 import (
    CapacityRange,
    ControllerExpandVolumeRequest,
    ControllerStub,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    NodePublishVolumeRequest,
    NodeStub,
    NodeUnpublishVolumeRequest,
    Volume,
    VolumeCapability,
    VolumeCapabilityAccessMode,
    VolumeCapabilityAccessModeMode,
    VolumeCapabilityMountVolume,
)
from shared.threads import in_thread

Mode = VolumeCapabilityAccessModeMode


def capability(mode: Mode = Mode.MULTI_NODE_MULTI_WRITER, *flags: str) -> VolumeCapability:
    return VolumeCapability(
        mount=VolumeCapabilityMountVolume(fs_type="juicefs", mount_flags=list(flags)),
        access_mode=VolumeCapabilityAccessMode(mode=mode),
    )


@dataclass(kw_only=True)
class Orchestrator:
    """Calls the controller and the node with one Secret; targets lie below `pods` as kubelet lays them out.

    `mount_options` stand in every StorageClass and volume, comma-separated.
    """

    controller: ControllerStub
    node: NodeStub
    pods: Path
    secrets: dict[str, str]
    mount_options: str = ""

    @property
    def _parameters(self) -> dict[str, str]:
        return {"mountOptions": self.mount_options} if self.mount_options else {}

    def target(self, pod: str, volume: str) -> Path:
        return self.pods / "pods" / pod / "volumes" / "kubernetes.io~csi" / volume / "mount"

    async def create(self, name: str, *, size: int) -> Volume:
        reply = await self.controller.create_volume(
            CreateVolumeRequest(
                name=name,
                capacity_range=CapacityRange(required_bytes=size),
                volume_capabilities=[capability()],
                parameters=self._parameters,
                secrets=self.secrets,
            )
        )
        if reply.volume is None:
            raise RuntimeError("CreateVolume answered without a volume")
        return reply.volume

    async def expand(self, volume: str, *, size: int) -> int:
        request = ControllerExpandVolumeRequest(
            volume_id=volume,
            capacity_range=CapacityRange(required_bytes=size),
            secrets=self.secrets,
            volume_capability=capability(),
        )
        return (await self.controller.controller_expand_volume(request)).capacity_bytes

    async def delete(self, volume: str) -> None:
        await self.controller.delete_volume(DeleteVolumeRequest(volume_id=volume, secrets=self.secrets))

    async def publish(
        self,
        volume: str,
        target: Path,
        *,
        context: Mapping[str, str] | None = None,
        mode: Mode = Mode.MULTI_NODE_MULTI_WRITER,
        read_only: bool = False,
    ) -> None:
        await self.node.node_publish_volume(
            NodePublishVolumeRequest(
                volume_id=volume,
                target_path=str(target),
                volume_capability=capability(mode),
                readonly=read_only,
                secrets=self.secrets,
                volume_context=self._parameters | dict(context or {}),
            )
        )

    async def unpublish(self, volume: str, target: Path) -> None:
        await self.node.node_unpublish_volume(NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target)))


class Workload:
    """A process that uses a target (`demo.workload`), and in the end tells what it saw."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the workload has no pipes")
        self._input, self._output = process.stdin, process.stdout
        self.report: dict[str, Any] = {}

    async def rounds(self, count: int) -> None:
        """Wait until it has done so many more."""
        async with asyncio.timeout(60):
            for _ in range(count):
                await self._output.readline()

    async def end(self) -> None:
        """Have it end, and read its report."""
        self._input.close()
        async with asyncio.timeout(60):
            while (line := await self._output.readline()) == b".\n":
                pass
        self.report = orjson.loads(line)


@asynccontextmanager
async def working(kind: str, target: Path) -> AsyncIterator[Workload]:
    """A workload at the target while inside; afterwards its report is there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "demo.workload",
        kind,
        str(target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    workload = Workload(process)
    try:
        await workload.rounds(1)
        yield workload
        await workload.end()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def size(target: Path) -> int:
    """What `df` shows as size, in bytes."""
    answer = await asyncio.wait_for(in_thread(lambda: os.statvfs(target), name="df"), 10)
    return answer.f_blocks * answer.f_frsize


def stubs(controller: Channel, node: Channel) -> tuple[ControllerStub, NodeStub]:
    """Both services, with a deadline on every call as kubelet sets one."""
    return ControllerStub(controller, timeout=60), NodeStub(node, timeout=60)
