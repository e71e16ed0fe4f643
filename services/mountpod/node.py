"""The node service of this machine, as mountpod asks it: it alone touches mount points and targets."""

import time
from typing import Final

from shared.api.juicefs.v1 import (
    CloseReply,
    CloseRequest,
    MountReport,
    PrepareReply,
    PrepareRequest,
    ReleaseReply,
    ReleaseRequest,
    ReportReply,
    ReportRequest,
)
from shared.bus import Bus

_CLOSE_TIMEOUT: Final = 15.0
_RELEASE_TIMEOUT: Final = 10.0
_REPORT_TIMEOUT: Final = 2.0


class NodeService:
    """Each call raises NotReady when the node service or NATS is away, or else the node's own word."""

    def __init__(self, *, bus: Bus, node: str) -> None:
        self._bus = bus
        self._subject = f"juicefs.rpc.node.{node}"

    async def prepare(self, name: str, *, timeout: float, keep: bool = False, identity: str = "") -> None:
        """Have the client's mount point, directory and hand-over socket made; `timeout` in seconds."""
        await self._bus.request(
            f"{self._subject}.Prepare",
            PrepareRequest(mount=name, keep=keep, identity=identity, time_ms=int(time.time() * 1000)),
            PrepareReply,
            timeout=timeout,
        )

    async def release(self, name: str) -> None:
        """Have the client's descriptor taken for good, and its session noted for the next one."""
        request = ReleaseRequest(mount=name)
        await self._bus.request(f"{self._subject}.Release", request, ReleaseReply, timeout=_RELEASE_TIMEOUT)

    async def close(self, name: str) -> bool:
        """Have the client's mount unmounted; False if it is in use, and stays."""
        request = CloseRequest(mount=name)
        reply = await self._bus.request(f"{self._subject}.Close", request, CloseReply, timeout=_CLOSE_TIMEOUT)
        return not reply.in_use

    async def report(self) -> dict[str, MountReport]:
        """What is mounted on this machine, by mount name."""
        reply = await self._bus.request(
            f"{self._subject}.Report", ReportRequest(), ReportReply, timeout=_REPORT_TIMEOUT
        )
        return {mount.mount: mount for mount in reply.mounts}


def is_used(mount: MountReport | None) -> bool:
    """True if a target is bound to this mount, or a publish is about to bind one."""
    return mount is not None and (bool(mount.targets) or mount.expected)
