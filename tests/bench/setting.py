"""Where measurements take place: a driver of their own, the floors beside it, and the requests of a kubelet."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.driver import Driver
from demo.machine import background
from demo.orchestrator import Orchestrator
from shared.api.csi.v1 import IdentityStub
from tests.bench.floors import BareClient, bare_server
from tests.bench.rows import timed
from tests.integration.local import Local, local, until

_END: Final = 90.0
"""Seconds: a close that failed is tried again after half a minute, and then after a grace of another."""


@dataclass(kw_only=True)
class Setting:
    """A running driver; `bare` and `client` do the same things by hand."""

    machine: Local
    bare: IdentityStub
    client: BareClient

    @property
    def csi(self) -> Orchestrator:
        return self.machine.csi

    @property
    def driver(self) -> Driver:
        return self.machine.driver

    def target(self, pod: str, volume: str) -> Path:
        return self.machine.target(f"bench-{pod}", volume)

    async def publish(
        self, volume: str, target: Path, *, options: str = "", secrets: Mapping[str, str] | None = None
    ) -> float:
        """Seconds of one publish as a kubelet asks for it; `options` are the client's mount options."""
        pod = target.parents[2].name
        context = {
            "csi.storage.k8s.io/pod.name": pod,
            "csi.storage.k8s.io/pod.namespace": "default",
            "csi.storage.k8s.io/pod.uid": pod,
            "csi.storage.k8s.io/serviceAccount.name": "default",
            "csi.storage.k8s.io/ephemeral": "false",
            "mountOptions": options,
        }
        csi = self.csi if secrets is None else dataclasses.replace(self.csi, secrets=dict(secrets))
        return await timed(csi.publish(volume, target, context=context))

    async def unpublish(self, volume: str, target: Path) -> float:
        """Seconds of one unpublish."""
        return await timed(self.csi.unpublish(volume, target))

    async def no_clients(self) -> None:
        """Wait until every client of the driver has ended, and what belonged to it is gone."""
        try:
            await until(lambda: not self.driver.clients() and not self._left(), timeout=_END)
        except TimeoutError:
            names = sorted({Path(left).parent.name for left in self._left()})
            raise TimeoutError(f"{len(names)} clients that nobody uses do not end: {', '.join(names[:3])} …") from None

    def _left(self) -> list[str]:
        clients = (self.driver.layout.client(name).directory for name in self.driver.layout.names())
        return [str(file) for directory in clients for file in directory.glob("*")]


@asynccontextmanager
async def setting(*services: str) -> AsyncIterator[Setting]:
    """These services (all of them if none is named) on a directory of their own, and nothing left of it afterwards."""
    async with AsyncExitStack() as stack:
        machine = await stack.enter_async_context(local(*services))
        base = machine.driver.base
        client = BareClient(base=base)
        await stack.enter_async_context(background(client.table.run()))
        bare = await stack.enter_async_context(bare_server(base))
        try:
            yield Setting(machine=machine, bare=bare, client=client)
        except Exception as error:
            for name, process in machine.driver.running.items():
                if process.returncode is not None:
                    raise RuntimeError(f"{name} has ended: {machine.driver.tail(name, lines=2)}") from error
            raise
