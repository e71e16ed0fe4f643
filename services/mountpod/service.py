"""What mountpod answers and hears on the bus. Parses, calls the runtime, translates; nothing is decided here."""

from services.mountpod.reconcile import Reconcile
from services.mountpod.runtime import Runtime
from shared.api.juicefs.v1 import (
    ClientInfo,
    EnsureReply,
    EnsureRequest,
    ListReply,
    ListRequest,
    RestartReply,
    RestartRequest,
)
from shared.bus import Bus, End


class MountpodService:
    """Serves one node."""

    def __init__(self, *, runtime: Runtime, reconcile: Reconcile, bus: Bus, node: str) -> None:
        self._runtime = runtime
        self._reconcile = reconcile
        self._bus = bus
        self._node = node

    def start(self) -> list[End]:
        """Subscribe; the bus does the rest, on this connection and every later one."""
        subject = f"juicefs.rpc.mountpod.{self._node}"
        return [
            self._bus.serve(f"{subject}.Ensure", EnsureRequest, self.ensure, queue="mountpod"),
            self._bus.serve(f"{subject}.Restart", RestartRequest, self.restart, queue="mountpod"),
            self._bus.serve("juicefs.rpc.mountpod.List", ListRequest, self.list),
            self._bus.on_event(f"juicefs.event.node.{self._node}.>", self._reconcile.hear),
        ]

    async def ensure(self, request: EnsureRequest) -> EnsureReply:
        """Answers as soon as the client runs or is being started; its mount tells the rest."""
        wanted = await self._runtime.resolve(request)
        await self._runtime.ensure(wanted)
        return EnsureReply(mount=wanted.mount_name, settings_digest=wanted.digest)

    async def list(self, _: ListRequest) -> ListReply:
        clients = sorted(self._runtime.clients().items())
        found = [ClientInfo(mount=mount, volume_id=settings.volume_id) for mount, settings in clients]
        return ListReply(node=self._node, clients=found)

    async def restart(self, request: RestartRequest) -> RestartReply:
        await self._runtime.restart(request.mount)
        return RestartReply()
