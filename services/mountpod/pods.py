"""The runtime whose clients are pods of one node. Kubernetes and the node's mount table are its memory.

Everything is decided by one look at a mount (`_attend`): at its pods, and at what the node says of its targets. Events
of either only make it come sooner. A pod that leaves while its mount is in use gets a successor at once; that one waits
for the lock of the first, takes its connection over, and goes on.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from weakref import WeakValueDictionary

import structlog

from services.mountpod.alarms import Alarms
from services.mountpod.cluster import Cluster
from services.mountpod.failures import Failures
from services.mountpod.node import NodeService
from services.mountpod.planner import Plan
from services.mountpod.pod_failure import Failing, stuck
from services.mountpod.pod_index import settings_of
from services.mountpod.pod_maker import Wish
from services.mountpod.pod_state import State, Verdict, restarts, verdict
from services.mountpod.references import References
from services.mountpod.replace import let_go, replace_in_order
from services.mountpod.waiting import Waiting
from shared.api.juicefs.v1 import (
    ClientExited,
    ClientStarting,
    EnsureRequest,
    Event,
    MountClosed,
    MountFailed,
    MountReport,
)
from shared.errors import CommandFailed, DriverError, NotFound, NotReady
from shared.manifests import CONTAINER
from shared.objects import Pod
from shared.settings import ClientSettings

_PERIOD: Final = 30.0
_PREPARE_TIMEOUT: Final = 10.0
_WELL: Final = {State.STARTING, State.RUNNING}
_AGAIN: Final = 2.0
_DELETE_AT: Final = "juicefs-delete-at"

_log = structlog.get_logger()


class Pods:
    """Implements `Runtime` for one node."""

    def __init__(self, *, node: str, cluster: Cluster, service: NodeService) -> None:
        self.node = node
        self.cluster = cluster
        self.service = service
        self.handed_in: dict[str, asyncio.Event] = {}
        self._references = References(node=node, index=cluster.index, maker=cluster.maker)
        self._tasks: asyncio.TaskGroup | None = None
        self._due = asyncio.Event()
        self._plans: dict[str, Plan] = {}
        self._failures = Failures()
        self._locks = WeakValueDictionary[str, asyncio.Lock]()
        self._ending: set[str] = set()
        self._short: set[str] = set()
        self._left: set[str] = set()
        self._waiting = Waiting()
        self._alarms = Alarms(self._wake)

    # ---- what the port promises

    async def resolve(self, request: EnsureRequest) -> ClientSettings:
        plan = await self.cluster.planner.plan(request.volume_id, node=self.node)
        name = plan.settings.mount_name
        self._plans[name] = plan
        if request.target:
            self._references.expects(name, request.target)
        self.cluster.notices.waits(self.node, name, request.workload)
        return plan.settings

    async def ensure(self, settings: ClientSettings) -> None:
        name = settings.mount_name
        async with self._locks.setdefault(name, asyncio.Lock()):
            is_slow = self._waiting.ask(name)
            self._ending.discard(name)
            living = [pod for pod in self.cluster.index.of(self.node, name) if verdict(pod).lives]
            if is_slow and living:
                self._alarms.set(name, _AGAIN)
            for pod in living:
                if pod.metadata.labels.get("juicefs-hash") not in {settings.digest[:63], None}:
                    raise DriverError(f"the client of {name} has other settings by now: let its users end first")
                if verdict(pod).state is State.STUCK:
                    raise stuck(pod, verdict(pod))
            if not living:
                self._failures.check(name)
                await self._create(name, self._plans[name])

    async def restart(self, name: str) -> None:
        if not self.cluster.index.of(self.node, name):
            raise NotFound(f"no client is called {name[:64]!r} on node {self.node}")
        async with self._locks.setdefault(name, asyncio.Lock()):
            await replace_in_order(self, name)

    async def end(self, name: str) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            pods = self.cluster.index.of(self.node, name)
            self._ending.add(name)
            for pod in pods:
                await self.cluster.maker.delete(pod)
            if not pods:
                self._closed(name)

    def announce_end(self, name: str, seconds: float | None) -> None:
        when = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        self._references.set(name, _DELETE_AT, when.strftime("%Y-%m-%dT%H:%M:%SZ") if when else None)

    def clients(self) -> Mapping[str, ClientSettings]:
        index = self.cluster.index
        known = {name: plan.settings for name, plan in self._plans.items()}
        return {
            name: known.get(name) or settings_of(name, index.of(self.node, name)) for name in index.mounts(self.node)
        }

    def retry(self) -> None:
        self._due.set()

    def tidy(self) -> None:
        self._failures.tidy()
        index = self.cluster.index
        self._left &= {pod.metadata.uid for name in index.mounts(self.node) for pod in index.of(self.node, name)}

    # ---- its life

    async def run(self) -> None:
        """Look at every mount at each change, and every half minute, until cancelled."""
        self.cluster.index.listen(self.node, self._wake)
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._references.run(), name=f"references of {self.node}")
            while True:
                self._due.clear()
                with suppress(DriverError):
                    reports = await self.service.report()
                    for name in {*reports, *self.cluster.index.mounts(self.node)}:
                        self._references.found(name, reports.get(name))
                        self._wake(name, reports.get(name, MountReport()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PERIOD):
                        await self._due.wait()

    def hear(self, event: Event) -> None:
        """What the node says of clients and targets."""
        name = event.mount
        if event.target_bound is not None:
            self._waiting.end(name)
            if name in self._plans and self._plans[name].settings.clean_cache and self._tasks is not None:
                self._tasks.create_task(self._references.note_uuid(name), name=f"uuid of {name}")
        if event.descriptor_kept is not None:
            self._failures.forget(name)
            if waiting := self.handed_in.get(name):
                waiting.set()
        self._references.hear(event)
        self.cluster.notices.hear(self.node, event)

    def _wake(self, name: str, report: MountReport | None = None) -> None:
        if self._tasks is not None:
            self._tasks.create_task(self._attend_safely(name, report), name=f"attend {name}")

    async def _attend_safely(self, name: str, report: MountReport | None) -> None:
        try:
            async with self._locks.setdefault(name, asyncio.Lock()):
                await self._attend(name, report)
        except DriverError as error:
            _log.warning("mount not attended to", node=self.node, mount=name, error=str(error))
            self.cluster.notices.trouble(self.node, name, error)
            self._alarms.set(name, _AGAIN)
        except Exception as error:  # noqa: BLE001 - whatever one mount runs into, the others go on
            _log.error("attending failed", node=self.node, mount=name, exc_info=error)

    async def _attend(self, name: str, report: MountReport | None) -> None:
        """Bring the pods of one mount to what its use asks for."""
        pods = self.cluster.index.of(self.node, name)
        verdicts = {pod.metadata.uid: verdict(pod) for pod in pods}
        is_quiet = all(found.state in _WELL for found in verdicts.values()) and not any(map(restarts, pods))
        if pods and is_quiet and report is None and not self._waiting.is_doubted(name):
            return
        if report is None or not is_quiet:  # what was told may be old by now
            report = (await self.service.report()).get(name, MountReport())
        if not pods:
            await self._attend_bare(name, report)
            return
        for pod in pods:
            await self._attend_pod(name, pod, found=verdicts[pod.metadata.uid], report=report)
        is_stuck = any(found.state is State.STUCK for found in verdicts.values())
        is_unused = not (report.targets or report.device or report.expected)
        if is_unused and self._waiting.is_forgotten(name, is_stuck=is_stuck):
            await self._forget(name)

    async def _attend_pod(self, name: str, pod: Pod, *, found: Verdict, report: MountReport) -> None:
        """One that is waited for comes up or has failed; one that is used gets a successor when it ends."""
        is_new = self._waiting.is_waited(name) and not (report.targets or report.device)
        is_used = bool(report.targets or (is_new and found.state is State.SHORT))
        plan = self._plans.get(name)
        failing = Failing(maker=self.cluster.maker, marks=plan.filesystem.marks if plan else ())
        if is_new and (error := await failing.why(pod, found, doubt=self._waiting.doubt(name))):
            await self._fail(name, pod, error, is_final=found.state is not State.STUCK)
        elif found.state in {State.CRASHED, State.ENDED, State.SHORT}:
            self._said_exit(name, pod)
            await self._succeed(name, pod, found, is_wanted=is_used)
            await self.cluster.maker.delete(pod)
        elif found.state is State.LEAVING and is_used and pod.metadata.uid not in self._left:
            await self._succeed(name, pod, found, is_wanted=True)
            self._left.add(pod.metadata.uid)
            await let_go(self, name)

    async def _attend_bare(self, name: str, report: MountReport) -> None:
        """No pod: its targets need one, or it has ended."""
        if report.targets:
            await self._create(name, await self._plan_again(name), is_new=False)
        elif name in self._ending:
            self._closed(name)

    async def _succeed(self, name: str, pod: Pod, found: Verdict, *, is_wanted: bool) -> None:
        """Another pod in the place of one that leaves or has ended, on the same path."""
        if found.state is State.SHORT and self.cluster.planner.configuration.drops_requests:
            self._short.add(name)
        if not is_wanted or self._living(name):
            return
        self._failures.check(name)
        plan = await self._plan_again(name)
        await self._create(name, plan, after=pod.metadata.uid, is_new=False)
        if found.state is State.CRASHED:
            self._failures.add(name, NotReady(f"the client of {name} was started anew a moment ago: try again"))

    async def _plan_again(self, name: str) -> Plan:
        """From today's objects, never from a copy (promise 19)."""
        planner = self.cluster.planner
        plan = await planner.plan(planner.volumes.handle(name.rpartition("-")[0]), node=self.node)
        self._plans[name] = plan
        return plan

    async def create(self, name: str, *, after: str) -> Pod:
        """A successor for `replace_in_order`: it waits for the lock of the pod before it."""
        return await self._create(name, await self._plan_again(name), after=after, is_new=False)

    async def _create(self, name: str, plan: Plan, *, after: str = "", is_new: bool = True) -> Pod:
        await self.service.prepare(name, timeout=_PREPARE_TIMEOUT, keep=True)
        wish = Wish(
            node=self.node,
            mount=name,
            plan=plan,
            targets=self._references.targets(name),
            after=after,
            is_new=is_new,
            has_requests=name not in self._short,
        )
        pod = await self.cluster.maker.create(wish)
        self._say(ClientStarting(attempt=1), name)
        return pod

    # ---- what goes wrong

    async def _fail(self, name: str, pod: Pod, error: CommandFailed, *, is_final: bool = True) -> None:
        """A client that never came up: say why. One that Kubernetes may still start is left to it."""
        if is_final:
            self._failures.add(name, error)
            await self.cluster.maker.delete(pod, grace=0)
            self._waiting.end(name)
        self._say(MountFailed(reason=error.reason, message=str(error).removeprefix(f"{error.reason}: ")), name)
        self.cluster.notices.failed(self.node, name, error)

    async def _forget(self, name: str) -> None:
        if await self.service.close(name):
            for pod in self.cluster.index.of(self.node, name):
                await self.cluster.maker.delete(pod)
            self._ending.add(name)

    def _said_exit(self, name: str, pod: Pod) -> None:
        ended = next((one.state.terminated for one in pod.status.container_statuses if one.name == CONTAINER), None)
        code = ended.exit_code if ended else -1
        self._say(ClientExited(exit_code=code, last_line=pod.status.message), name)

    def _closed(self, name: str) -> None:
        self._ending.discard(name)
        self._plans.pop(name, None)
        self._waiting.end(name)
        self._short.discard(name)
        self._failures.forget(name)
        self._references.forget(name)
        self._say(MountClosed(), name)

    def _living(self, name: str) -> list[Pod]:
        return [pod for pod in self.cluster.index.of(self.node, name) if verdict(pod).lives]

    def _say(self, what: MountClosed | MountFailed | ClientExited | ClientStarting, name: str) -> None:
        plan = self._plans.get(name)
        self.cluster.bus.say(what, volume_id=plan.settings.volume_id if plan else "", mount=name, node=self.node)
