"""The node service as mountpod meets it on the bus, without a kernel. Its promises: `tests/contract/test_node.py`."""

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
from shared.errors import InvalidRequest, NotReady
from shared.settings import is_mount_name
from tests.fakes.bus import MemoryBus


class FakeNode:
    """What is mounted, bound, expected and leaving is what a test says, by mount name."""

    def __init__(self, bus: MemoryBus) -> None:
        self.devices: dict[str, str] = {}
        self.targets: dict[str, list[str]] = {}
        self.expected: set[str] = set()
        self.leaving: set[str] = set()
        self.lost: set[str] = set()
        self.prepared: list[str] = []
        self.released: list[str] = []
        bus.serve("juicefs.rpc.node.n1.Prepare", PrepareRequest, self.prepare)
        bus.serve("juicefs.rpc.node.n1.Close", CloseRequest, self.close)
        bus.serve("juicefs.rpc.node.n1.Release", ReleaseRequest, self.release)
        bus.serve("juicefs.rpc.node.n1.Report", ReportRequest, self.report)

    async def prepare(self, request: PrepareRequest) -> PrepareReply:
        self.devices.setdefault(_name(request.mount), "")
        self.prepared.append(request.mount)
        return PrepareReply()

    async def release(self, request: ReleaseRequest) -> ReleaseReply:
        if _name(request.mount) not in self.leaving:
            raise NotReady("it has not said that it leaves")
        self.leaving.discard(request.mount)
        self.released.append(request.mount)
        return ReleaseReply()

    async def close(self, request: CloseRequest) -> CloseReply:
        if self.targets.get(_name(request.mount)) or request.mount in self.expected:
            return CloseReply(in_use=True)
        self.unmount(request.mount)
        return CloseReply()

    def unmount(self, name: str) -> None:
        self.devices[name] = ""

    def names(self) -> set[str]:
        return {*self.devices, *self.targets}

    async def report(self, _: ReportRequest) -> ReportReply:
        return ReportReply(
            mounts=[
                MountReport(
                    mount=name,
                    device=self.devices.get(name, ""),
                    targets=self.targets.get(name, []),
                    expected=name in self.expected,
                    lost=name in self.lost,
                )
                for name in sorted(self.names())
            ]
        )


def _name(value: str) -> str:
    if not is_mount_name(value):
        raise InvalidRequest("not the name of a mount")
    return value
