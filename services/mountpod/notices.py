"""Tells workloads in Kubernetes Events what becomes of the clients that they wait for, or use."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from shared.api.juicefs.v1 import Event, Workload
from shared.errors import CommandFailed, DriverError
from shared.recorder import Recorder, Reference

_LONG: Final = 3.0
"""Seconds that a start may take before it is worth an Event of its own: most take less."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    pod: Reference
    since: float
    is_told: bool = False


class Notices:
    """For all nodes; keyed by node and mount."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._waiting: defaultdict[tuple[str, str], dict[str, _Waiting]] = defaultdict(dict)
        self._users: defaultdict[tuple[str, str], dict[str, Reference]] = defaultdict(dict)

    def waits(self, node: str, mount: str, workload: Workload | None) -> None:
        """A pod waits for this client."""
        if workload is None or not workload.name:
            return
        pod = Reference(
            kind="Pod", api_version="v1", name=workload.name, namespace=workload.namespace, uid=workload.uid
        )
        now = asyncio.get_running_loop().time()
        waiting = self._waiting[node, mount]
        known = waiting.setdefault(workload.uid, _Waiting(pod=pod, since=now))
        if not known.is_told and now > known.since + _LONG:
            known.is_told = True
            self._recorder.say(pod, reason="MountStarting", message=f"the JuiceFS client of {mount} is being started")

    def failed(self, node: str, mount: str, error: CommandFailed) -> None:
        """The client could not be started: all who wait hear why."""
        for one in self._waiting.pop((node, mount), {}).values():
            message = f"the JuiceFS client of {mount} could not start: {error}"
            self._recorder.say(one.pod, reason="MountFailed", message=message, is_warning=True)

    def trouble(self, node: str, mount: str, error: DriverError) -> None:
        """A client that is in use could not be brought back yet."""
        for user in self._users.get((node, mount), {}).values():
            message = f"the JuiceFS client of {mount} is not back yet: {error}"
            self._recorder.say(user, reason="MountFailed", message=message, is_warning=True)

    def hear(self, node: str, event: Event) -> None:
        """What the node says of targets."""
        key = node, event.mount
        if event.target_bound is not None:
            uid = _pod_uid(event.target_bound.target)
            if waited := self._waiting.get(key, {}).pop(uid, None):
                seconds = asyncio.get_running_loop().time() - waited.since
                message = f"the JuiceFS client of {event.mount} serves it after {seconds:.1f} s"
                self._recorder.say(waited.pod, reason="MountReady", message=message)
            if event.target_bound.pod_name:
                self._users[key][event.target_bound.target] = Reference(
                    kind="Pod",
                    api_version="v1",
                    name=event.target_bound.pod_name,
                    namespace=event.target_bound.pod_namespace,
                    uid=uid,
                )
        elif event.target_unbound is not None:
            self._users[key].pop(event.target_unbound.target, None)
        elif event.descriptor_taken is not None or event.target_rebound is not None:
            for user in self._users[key].values():
                message = f"the JuiceFS client of {event.mount} was replaced, and serves again"
                self._recorder.say(user, reason="MountRecovered", message=message)
        elif event.mount_idle is not None:
            self._users.pop(key, None)
            self._waiting.pop(key, None)


def _pod_uid(target: str) -> str:
    """Of a target that is kubelet's, which lies below …/pods/<uid>/."""
    parts = target.split("/")
    return parts[parts.index("pods") + 1] if "pods" in parts[:-1] else ""
