"""One mount of one node, and the pods that serve it: what becomes of them is decided here, by one look at a time.

A pod that leaves while its mount is in use gets a successor at once; that one waits for the lock of the first, takes
its connection over, and goes on.
"""

import asyncio
from dataclasses import replace
from typing import Final

from services.mountpod.place import Place
from services.mountpod.planner import Plan
from services.mountpod.pod_failure import Failing, stuck
from services.mountpod.pod_maker import Wish
from services.mountpod.pod_state import POD_STARTING, State, Verdict, exit_code, restarts, serves, verdict
from services.mountpod.replace import let_go, replace_in_order
from services.mountpod.waiting import Waiting
from shared.api.juicefs.v1 import ClientExited, ClientStarting, MountClosed, MountFailed, MountReport
from shared.errors import CommandFailed, DriverError, InUse, NotReady
from shared.manifests import pod_name
from shared.objects import Pod
from shared.settings import ClientSettings

_PREPARE_TIMEOUT: Final = 10.0
_OVER: Final = {State.EXITED, State.CRASHED, State.ENDED, State.SHORT}
"""Of a client that is used. Kubelet would start an exited one again, but each time later."""
_WELL: Final = {State.STARTING, State.RUNNING}


class Mount:
    """Every method but `attend` is a caller's wish; one at a time has its way."""

    def __init__(self, name: str, *, place: Place) -> None:
        self.name = name
        self.place = place
        self.plan: Plan | None = None
        self.waiting = Waiting()
        self.handed_in = asyncio.Event()
        self.is_due = False
        self._lock = asyncio.Lock()
        self._is_ending = False
        self._is_short = False
        self._left: set[str] = set()

    # ---- what others wish

    async def ensure(self, settings: ClientSettings) -> None:
        """A pod with these settings runs, or is being started.

        Raises:
            CommandFailed: it can't be started as things are, or the last could not and the next is not due.
            DriverError: it has other settings, or what Kubernetes says.
        """
        async with self._lock:
            living = self.living()
            if not living:
                self.place.failures.check(self.name)
            self._is_ending = False
            for pod in living:
                if not serves(pod, settings):
                    raise InUse(
                        f"mount pod {pod.metadata.name} was started anew with other settings: let its users end, "
                        "or run `juicefs-csi-mount upgrade`"
                    )
                if verdict(pod).state is State.STUCK:
                    self.waiting.ask()
                    raise stuck(pod, verdict(pod))
            if not living:
                await self._create(self.plan or await self._plan_again(), is_new=True)
            elif self.waiting.is_doubted and self.plan:
                await self._prepare(self.plan)  # what it lacks on the node, if it does
            self.waiting.ask()

    async def restart(self) -> None:
        """Another pod takes over, in an orderly way (`replace_in_order`)."""
        async with self._lock:
            await replace_in_order(self)

    async def end(self) -> None:
        """Its mount was closed: the pods go. One that has a mount by now is another."""
        async with self._lock:
            if (report := (await self.place.service.report()).get(self.name)) and report.device:
                return
            self._is_ending = True
            pods = self.pods()
            for pod in pods:
                await self.place.cluster.maker.delete(pod)
            if not pods:
                self._closed()

    # ---- what is

    def pods(self) -> list[Pod]:
        """The oldest first."""
        return self.place.cluster.index.of(self.place.node, self.name)

    def living(self) -> list[Pod]:
        """Those that serve, or may come to that; one that was given up for another does not."""
        return [pod for pod in self.pods() if verdict(pod).lives and pod.metadata.uid not in self._left]

    @property
    def is_over(self) -> bool:
        """True if nothing has to be kept of it."""
        is_waited = self.waiting.is_begun and not self.waiting.is_forgotten(is_stuck=False)
        return not (self.pods() or self._lock.locked() or self._is_ending or is_waited)

    # ---- one look

    async def attend(self, report: MountReport | None) -> None:
        """Bring the pods to what the mount's use asks for; `report` is the node's, if it was just asked.

        Raises:
            DriverError: something could not be done, and is to be tried again.
        """
        async with self._lock:
            self.is_due = False
            pods = self.pods()
            verdicts = {pod.metadata.uid: self._verdict(pod) for pod in pods}
            is_quiet = all(found.state in _WELL for found in verdicts.values()) and not any(map(restarts, pods))
            is_quiet = is_quiet and not self._superfluous()
            if pods and is_quiet and report is None and not self.waiting.is_doubted:
                return
            is_round = report is not None
            if report is None or not is_quiet:  # what was told may be old by now
                report = (await self.place.service.report()).get(self.name, MountReport())
            if not pods:
                await self._attend_bare(report, is_round=is_round)
                return
            for pod in self._superfluous():
                await self.place.cluster.maker.delete(pod)
            for pod in pods:
                await self._attend_pod(pod, verdicts[pod.metadata.uid], report)
            is_stuck = any(found.state is State.STUCK for found in verdicts.values())
            is_used = report.targets or report.device or report.expected
            if not is_used and self.waiting.is_forgotten(is_stuck=is_stuck):
                await self._forget()

    def _superfluous(self) -> list[Pod]:
        """Successors that wait for one that goes on: mountpod ended in the middle of an upgrade."""
        living = self.living()
        names = {pod_name(self.place.node, self.name, after=pod.metadata.uid) for pod in living}
        return [pod for pod in living if pod.metadata.name in names]

    async def _attend_bare(self, report: MountReport, *, is_round: bool) -> None:
        """No pod: its targets need one, or a publish that came while it ended, or it has ended."""
        if report.targets or (report.expected and self._is_ending):
            self._is_ending = False
            await self._bring_back(after="", is_new=not report.targets)
        elif self._is_ending or (is_round and self._is_left_over(report)):
            self._closed()

    def _is_left_over(self, report: MountReport) -> bool:
        """Something of it lies on the node, and nobody told the node that it has ended."""
        is_wanted = report.device or report.expected or self.waiting.is_begun
        return bool(report.mount) and not is_wanted and not self.place.failures.knows(self.name)

    async def _attend_pod(self, pod: Pod, found: Verdict, report: MountReport) -> None:
        """One that is waited for comes up or has failed; one that is used gets a successor when it ends."""
        is_new = self.waiting.is_begun and not (report.targets or report.device)
        uid = pod.metadata.uid
        if is_new and (error := await self._why(pod, found)):
            may_come_up = found.state is State.STUCK or error.reason == POD_STARTING
            await self._fail(pod, error, is_final=not may_come_up)
        elif found.state is State.STUCK and report.targets:
            await self._unstick(pod, found)
        elif found.state in _OVER:
            self._is_short = self._is_short or found.state is State.SHORT
            self._say(ClientExited(exit_code=exit_code(pod), last_line=pod.status.message))
            if report.targets or is_new:
                await self._bring_back(after=uid, is_new=is_new)
                again = f"the client of {self.name} was started anew a moment ago: {found.message or 'try again'}"
                self.place.failures.add(self.name, NotReady(again))
            await self.place.cluster.maker.delete(pod)
        elif found.state is State.RUNNING and report.lost:
            await self._leave_behind(pod)
        elif found.state is State.LEAVING and report.targets and uid not in self._left:
            await self._bring_back(after=uid, is_new=False)
            self._left.add(uid)
            await let_go(self)

    async def _leave_behind(self, pod: Pod) -> None:
        """Its processes were killed and can't end: one of them waits for its own mount. The next one answers it."""
        self._left.add(pod.metadata.uid)
        await self._bring_back(after=pod.metadata.uid, is_new=False)
        await self.place.cluster.maker.delete(pod)

    async def _unstick(self, pod: Pod, found: Verdict) -> None:
        """A successor that Kubernetes can't start: users hear why, and what was corrected since is taken."""
        self.place.cluster.notices.failed(self.place.node, self.name, stuck(pod, found))
        plan = await self._plan_again()
        if pod.metadata.labels.get("juicefs-hash") != plan.settings.digest[:63]:
            await self._create(plan, after=pod.metadata.uid)
            await self.place.cluster.maker.delete(pod, grace=0)

    @property
    def _may_ask_less(self) -> bool:
        return not self._is_short and self.place.cluster.planner.configuration.drops_requests

    def _verdict(self, pod: Pod) -> Verdict:
        """A node that is short of something is asked for less, once; and only if the configuration says so."""
        found = verdict(pod)
        if found.state is State.SHORT and not self._may_ask_less:
            return replace(found, state=State.ENDED)
        return found

    def asks_less(self) -> bool:
        """From now on this mount's pods request nothing; False if they did so already, or must not."""
        may = self._may_ask_less
        self._is_short = self._is_short or may
        return may

    async def _bring_back(self, *, after: str, is_new: bool) -> None:
        """Another pod on the same path, in the place of the one with the UID `after`, unless one is there already."""
        if self.living():
            return
        self.place.failures.check(self.name)
        try:
            await self._create(await self._plan_again(), after=after, is_new=is_new)
        except DriverError as error:
            self.place.cluster.notices.failed(self.place.node, self.name, error)
            raise

    async def _plan_again(self) -> Plan:
        """From today's objects, never from a copy (promise 19)."""
        planner = self.place.cluster.planner
        handle = planner.volumes.handle(self.name.rpartition("-")[0])
        self.plan = await planner.plan(handle, node=self.place.node)
        return self.plan

    async def create_successor(self, old: Pod) -> Pod:
        """A pod that waits for the lock of this one."""
        return await self._create(await self._plan_again(), after=old.metadata.uid)

    async def _create(self, plan: Plan, *, after: str = "", is_new: bool = False) -> Pod:
        await self._prepare(plan)
        wish = Wish(
            node=self.place.node,
            mount=self.name,
            plan=plan,
            targets=self.place.references.targets(self.name),
            after=after,
            is_new=is_new,
            has_requests=not self._is_short,
        )
        pod = await self.place.cluster.maker.create(wish)
        self._say(ClientStarting(attempt=1))
        return pod

    async def _prepare(self, plan: Plan) -> None:
        """The node makes what the pod needs, and sees to it that no client carries on another one's connection."""
        await self.place.service.prepare(self.name, timeout=_PREPARE_TIMEOUT, keep=True, identity=plan.identity)

    # ---- its ends

    async def _why(self, pod: Pod, found: Verdict) -> CommandFailed | None:
        plan = self.plan or await self._plan_again()  # without it nobody knows what is not to be shown
        failing = Failing(maker=self.place.cluster.maker, marks=plan.filesystem.marks)
        return await failing.why(pod, found, doubt=self.waiting.doubt(), wonders=self.waiting.wonders())

    async def _fail(self, pod: Pod, error: CommandFailed, *, is_final: bool) -> None:
        """A client that never came up: say why. One that Kubernetes may still start is left to it."""
        if is_final:
            report = (await self.place.service.report()).get(self.name, MountReport())
            if report.device or report.targets or not self.waiting.is_begun:
                return  # it came up while its log was read
        self.place.cluster.notices.failed(self.place.node, self.name, error)
        if is_final:
            self.place.failures.add(self.name, error)
            await self.place.cluster.maker.delete(pod, grace=0)
            self.waiting.end()
            self.place.references.forget(self.name)
            self._say(MountFailed(reason=error.reason, message=str(error).removeprefix(f"{error.reason}: ")))

    async def _forget(self) -> None:
        """Nobody waits for it any more, and it never came up."""
        if await self.place.service.close(self.name):
            self._is_ending = True
            for pod in self.pods():
                await self.place.cluster.maker.delete(pod)

    def _closed(self) -> None:
        if self._is_ending:  # else it never came up, and the next try is not due sooner for that
            self.place.failures.forget(self.name)
        self._is_ending = self._is_short = False
        self._left.clear()
        self.waiting.end()
        self.place.references.forget(self.name)
        self.place.cluster.notices.closed(self.place.node, self.name)
        self._say(MountClosed())
        self.plan = None

    def _say(self, what: MountClosed | MountFailed | ClientExited | ClientStarting) -> None:
        volume = self.plan.settings.volume_id if self.plan else ""
        self.place.cluster.bus.say(what, volume_id=volume, mount=self.name, node=self.place.node)
