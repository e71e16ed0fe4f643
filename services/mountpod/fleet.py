"""All nodes of a cluster, each with a runtime of its own: what one of them runs into does not concern the others."""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack

import structlog

from services.mountpod.cluster import Cluster
from services.mountpod.node import NodeService
from services.mountpod.pods import Pods
from services.mountpod.reconcile import Reconcile
from services.mountpod.service import MountpodService
from shared.informer import Informer
from shared.kubernetes import NODES, Kubernetes
from shared.objects import Node

_log = structlog.get_logger()


class Fleet:
    """Starts to serve a node when Kubernetes has it, and stops when it has not any more."""

    def __init__(self, api: Kubernetes) -> None:
        self._nodes = Informer(api, NODES, Node, on_change=self._changed)
        self._cluster: Cluster | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._runtimes: dict[str, Pods] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self.synced = self._nodes.synced

    def labels(self, node: str) -> Mapping[str, str]:
        """A node's labels; none if there is no such node."""
        found = self._nodes.objects.get(node)
        return found.metadata.labels if found else {}

    def nodes(self) -> list[str]:
        return list(self._nodes.objects)

    async def run_nodes(self) -> None:
        """Keep the list of nodes, until cancelled."""
        await self._nodes.run()

    async def run(self, cluster: Cluster) -> None:
        """Serve every node, until cancelled."""
        self._cluster = cluster
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                for node in self._nodes.objects:
                    self._start(node)
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def supersede(self) -> None:
        """The configuration has changed, or may have before we came."""
        for runtime in self._runtimes.values():
            runtime.supersede()

    def _changed(self, old: Node | None, new: Node | None) -> None:
        if new is not None and old is None:
            self._start(new.metadata.name)
        elif new is None and old is not None and (task := self._serving.get(old.metadata.name)):
            task.cancel()

    def _start(self, node: str) -> None:
        if self._tasks is None or self._cluster is None or node in self._serving:
            return
        task = self._serving[node] = self._tasks.create_task(self._serve(node, self._cluster), name=f"node {node}")
        task.add_done_callback(lambda _: self._ended(node))

    def _ended(self, node: str) -> None:
        """One that came back meanwhile is served anew."""
        del self._serving[node]
        if node in self._nodes.objects:
            self._start(node)

    async def _serve(self, node: str, cluster: Cluster) -> None:
        """Until the node is gone; a fault in here ends nobody else."""
        service = NodeService(bus=cluster.bus, node=node)
        runtime = self._runtimes[node] = Pods(node=node, cluster=cluster, service=service)
        reconcile = Reconcile(runtime=runtime, node=service)
        mountpod = MountpodService(runtime=runtime, reconcile=reconcile, bus=cluster.bus, node=node)
        with ExitStack() as parts:
            parts.callback(self._runtimes.pop, node)
            parts.callback(cluster.notices.gone, node)
            parts.callback(_log.info, "node is not served any more", node=node)
            for end in (*mountpod.start(), cluster.bus.on_event(f"juicefs.event.node.{node}.>", runtime.hear)):
                parts.callback(end)
            while True:
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(runtime.run(), name=f"pods of {node}")
                        tasks.create_task(reconcile.run(), name=f"reconcile {node}")
                except* Exception as failures:  # noqa: BLE001 - served again from scratch: nothing is kept in memory alone
                    _log.error("serving a node failed; it is begun again", node=node, exc_info=failures)
                await asyncio.sleep(1.0)
