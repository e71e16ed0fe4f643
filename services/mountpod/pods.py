"""The runtime whose clients are pods of one node. Kubernetes and the node's mount table are its memory.

Everything is decided by one look at a mount (`mount.py`): at its pods, and at what the node says of its targets. Events
of either only make it come sooner.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from services.mountpod.alarms import Alarms
from services.mountpod.cluster import Cluster
from services.mountpod.failures import Failures
from services.mountpod.mount import Mount
from services.mountpod.node import NodeService
from services.mountpod.place import Place
from services.mountpod.planner import Plan
from services.mountpod.pod_index import settings_of
from services.mountpod.recent import Recent
from services.mountpod.references import References
from shared.api.juicefs.v1 import EnsureRequest, Event, MountReport, MountSuperseded
from shared.errors import DriverError, NotFound, NotReady
from shared.settings import ClientSettings

_AGAIN: Final = 2.0
_DELETE_AT: Final = "juicefs-delete-at"

_log = structlog.get_logger()


class Pods:
    """Implements `Runtime` for one node."""

    def __init__(self, *, node: str, cluster: Cluster, service: NodeService) -> None:
        self.node = node
        self._cluster = cluster
        self._service = service
        self._references = References(node=node, index=cluster.index, maker=cluster.maker)
        self._failures = Failures()
        self._mounts: dict[str, Mount] = {}
        self._recent = Recent[str, Plan]()
        self._alarms = Alarms(self._wake)
        self._tasks: asyncio.TaskGroup | None = None

    # ---- what the port promises

    async def resolve(self, request: EnsureRequest) -> ClientSettings:
        volume, credentials = request.volume_id, request.credentials
        plan = await self._recent.get(
            volume,
            lambda: self._cluster.planner.plan(volume, node=self.node),
            # The Secret may have changed since: what kubelet brought is what counts.
            fits=lambda plan: plan.filesystem.credentials == credentials,
        )
        name = plan.settings.mount_name
        self._mount(name).plan = plan
        if request.target:
            self._references.expects(name, request.target)
        self._cluster.notices.waits(self.node, name, request.workload, claim=plan.claim)
        return plan.settings

    async def ensure(self, settings: ClientSettings) -> None:
        mount = self._mount(settings.mount_name)
        await mount.ensure(settings)
        if mount.waiting.is_doubted:
            self._alarms.set(mount.name, _AGAIN)

    async def restart(self, name: str) -> None:
        if not self._cluster.index.of(self.node, name):
            raise NotFound(f"no client is called {name[:64]!r} on node {self.node}")
        self._cluster.configuration.read()  # who asks for it may have changed it a moment ago
        await self._mount(name).restart()

    async def end(self, name: str) -> None:
        await self._mount(name).end()

    def announce_end(self, name: str, seconds: float | None) -> None:
        when = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        self._references.set(name, _DELETE_AT, when.strftime("%Y-%m-%dT%H:%M:%SZ") if when else None)

    def clients(self) -> Mapping[str, ClientSettings]:
        found = {}
        for name in self._cluster.index.mounts(self.node):
            plan = self._mounts[name].plan if name in self._mounts else None
            found[name] = plan.settings if plan else self._settings(name)
        return found

    def supersede(self) -> None:
        """The configuration has changed: every next publish asks again, and binds that are there keep theirs."""
        self._recent.clear()
        for name in self._cluster.index.mounts(self.node):
            self._cluster.bus.say(MountSuperseded(), mount=name, node=self.node)

    def _settings(self, name: str) -> ClientSettings:
        """Of a client that another mountpod planned."""
        known = settings_of(name, self._cluster.index.of(self.node, name))
        with suppress(NotReady):
            return replace(known, volume_id=self._cluster.planner.volumes.handle(known.volume_id))
        return known

    def retry(self) -> None:
        """Nothing: the look that follows brings it."""

    def look(self, mounts: Mapping[str, MountReport]) -> None:
        self._failures.tidy()
        for name in [name for name, mount in self._mounts.items() if mount.is_over]:
            del self._mounts[name]
            if not self._references.targets(name):
                self._cluster.notices.closed(self.node, name)
        for name in {*mounts, *self._cluster.index.mounts(self.node)}:
            self._references.found(name, mounts.get(name))
            self._wake(name, mounts.get(name, MountReport()))

    # ---- its life

    async def run(self) -> None:
        """Look at every mount at each change, until cancelled."""
        try:
            with self._cluster.index.listening(self.node, self._wake):
                async with asyncio.TaskGroup() as self._tasks:
                    await self._references.run()
        finally:
            self._tasks = None

    def hear(self, event: Event) -> None:
        """What the node says of clients and targets."""
        name = event.mount
        if self._tasks is None:
            return
        if event.descriptor_kept is not None:
            self._failures.forget(name)
            self._mount(name).handed_in.set()
        if event.target_bound is not None:
            mount = self._mount(name)
            mount.waiting.end()
            if mount.plan and mount.plan.settings.clean_cache:
                self._spawn(self._references.note_uuid(name), name=f"uuid of {name}")
        self._references.hear(event)
        self._spawn(self._cluster.notices.hear(self.node, event), name=f"notices of {name}")

    def _mount(self, name: str) -> Mount:
        if name not in self._mounts:
            place = Place(
                node=self.node,
                cluster=self._cluster,
                service=self._service,
                references=self._references,
                failures=self._failures,
            )
            self._mounts[name] = Mount(name, place=place)
        return self._mounts[name]

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        try:
            if self._tasks is not None:
                self._tasks.create_task(work, name=name)
                return
        except RuntimeError:  # the program ends
            pass
        work.close()

    def _wake(self, name: str, report: MountReport | None = None) -> None:
        mount = self._mount(name)
        if self._tasks is None or (mount.is_due and report is None):
            return
        mount.is_due = True  # what happens until it is looked at is seen then
        self._spawn(self._attend(name, report), name=f"attend {name}")

    async def _attend(self, name: str, report: MountReport | None) -> None:
        try:
            await self._mount(name).attend(report)
        except DriverError as error:
            _log.warning("mount not attended to", node=self.node, mount=name, error=str(error))
            self._alarms.set(name, _AGAIN)
        except Exception as error:  # noqa: BLE001 - whatever one mount runs into, the others go on
            _log.error("attending failed", node=self.node, mount=name, exc_info=error)
