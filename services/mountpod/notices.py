"""Tells workloads and claims in Kubernetes Events what becomes of the clients that they wait for, or use."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from services.mountpod.propagation import blind_containers
from shared.api.juicefs.v1 import Event, Workload
from shared.errors import DriverError
from shared.kubernetes import PODS, Kubernetes
from shared.recorder import Recorder, Reference

_LONG: Final = 3.0
"""Seconds that a start may take before it is worth an Event of its own: most take less."""


@dataclass(slots=True, kw_only=True)
class _Waiting:
    pod: Reference
    since: float
    is_told: bool = False


@dataclass(slots=True, kw_only=True)
class _Mount:
    """Who has to do with a mount; `users` are by target, `waiting` by the pod's UID."""

    claim: Reference | None = None
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    users: dict[str, Reference] = field(default_factory=dict)


class Notices:
    """For all nodes. What is known of users is from events: after a restart, of those that come later."""

    def __init__(self, api: Kubernetes, recorder: Recorder) -> None:
        self._api = api
        self._recorder = recorder
        self._mounts: dict[tuple[str, str], _Mount] = {}

    def waits(self, node: str, mount: str, workload: Workload | None, *, claim: Reference | None) -> None:
        """A pod waits for this client, on behalf of a claim."""
        known = self._mounts.setdefault((node, mount), _Mount())
        known.claim = claim
        if workload is None or not workload.name:
            return
        now = asyncio.get_running_loop().time()
        pod = _pod(workload.namespace, workload.name, workload.uid)
        waiting = known.waiting.setdefault(workload.uid, _Waiting(pod=pod, since=now))
        if not waiting.is_told and now > waiting.since + _LONG:
            waiting.is_told = True
            self._recorder.say(pod, reason="MountStarting", message=f"the JuiceFS client of {mount} is being started")

    def failed(self, node: str, mount: str, error: DriverError) -> None:
        """The client could not be started, or not be brought back yet: all whom it concerns hear why."""
        known = self._mounts.get((node, mount), _Mount())
        concerned = [*(waiting.pod for waiting in known.waiting.values()), *known.users.values()]
        known.waiting.clear()
        for one in [*concerned, *([known.claim] if known.claim else [])]:
            message = f"the JuiceFS client of {mount} on node {node} does not serve: {error}"
            self._recorder.say(one, reason="MountFailed", message=message, is_warning=True)

    def closed(self, node: str, mount: str) -> None:
        """The mount is gone, and all that is known of it."""
        self._mounts.pop((node, mount), None)

    def gone(self, node: str) -> None:
        """The node is gone, or served by another."""
        for key in [key for key in self._mounts if key[0] == node]:
            del self._mounts[key]

    async def hear(self, node: str, event: Event) -> None:
        """What the node says of targets."""
        known = self._mounts.get((node, event.mount))
        if event.target_bound is not None and event.target_bound.pod_name:
            known = self._mounts.setdefault((node, event.mount), _Mount())
            bound = event.target_bound
            known.users[bound.target] = _pod(bound.pod_namespace, bound.pod_name, _pod_uid(bound.target))
            self._ready(event.mount, known.waiting.pop(_pod_uid(bound.target), None))
        elif known is None:
            return
        elif event.target_unbound is not None:
            known.users.pop(event.target_unbound.target, None)
        elif event.descriptor_taken is not None:
            for one in known.users.values():
                self._recovered(event.mount, one)
        elif event.target_rebound is not None and (user := known.users.get(event.target_rebound.target)):
            await self._rebound(event.mount, user, claim=known.claim)

    def _ready(self, mount: str, waited: _Waiting | None) -> None:
        if waited is not None:
            seconds = asyncio.get_running_loop().time() - waited.since
            message = f"the JuiceFS client of {mount} serves it after {seconds:.1f} s"
            self._recorder.say(waited.pod, reason="MountReady", message=message)

    def _recovered(self, mount: str, user: Reference) -> None:
        message = f"the JuiceFS client of {mount} was replaced, and serves again"
        self._recorder.say(user, reason="MountRecovered", message=message)

    async def _rebound(self, mount: str, user: Reference, *, claim: Reference | None) -> None:
        """A target was bound anew: not every container can see that."""
        blind: list[str] = []
        with suppress(DriverError):
            found = await self._api.get(PODS, user.name, namespace=user.namespace)
            blind = blind_containers(found, claim=claim.name if claim else "")
        if not blind:
            self._recovered(mount, user)
            return
        message = (
            f"the volume of {mount} is mounted anew, which container {', '.join(blind)} can't see: its volumeMount has "
            "no mountPropagation: HostToContainer; delete the pod so that it starts again"
        )
        for one in (user, *([claim] if claim else [])):
            self._recorder.say(one, reason="MountNotRecoverable", message=message, is_warning=True)


def _pod(namespace: str, name: str, uid: str) -> Reference:
    return Reference(kind="Pod", api_version="v1", name=name, namespace=namespace, uid=uid)


def _pod_uid(target: str) -> str:
    """Of a target that is kubelet's, which lies below …/pods/<uid>/."""
    parts = target.split("/")
    return parts[parts.index("pods") + 1] if "pods" in parts[:-1] else ""
