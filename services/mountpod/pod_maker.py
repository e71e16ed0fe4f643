"""Makes and removes a mount's pods and its Secret in Kubernetes: each call one request, or two when it comes again."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from services.mountpod.planner import Plan
from services.mountpod.pod_index import FINALIZER, PodIndex
from shared.apiserver import Conflict
from shared.errors import AlreadyExists, DriverError, InUse, NotFound
from shared.kubernetes import EVENTS, PODS, SECRETS, Kubernetes
from shared.layout import Layout
from shared.manifests import OURS, MountPod, pod_name, secret
from shared.objects import Pod

_EARLIER: Final = "jfsSettings"
_TRIES: Final = 10
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A pod that is wanted: `mount` is its mount's name, `after` the UID of the pod whose place it takes."""

    node: str
    mount: str
    plan: Plan
    targets: tuple[str, ...] = ()
    after: str = ""
    is_new: bool = True
    has_requests: bool = True


class PodMaker:
    """For all nodes. `layout` holds the paths of the host."""

    def __init__(self, api: Kubernetes, *, namespace: str, index: PodIndex, layout: Layout) -> None:
        self._api = api
        self._namespace = namespace
        self._index = index
        self._layout = layout

    async def create(self, wish: Wish) -> Pod:
        """The pod, made or found: its name says whether it exists.

        Raises:
            DriverError: what the API server says.
        """
        await self._ensure_secret(wish.plan)
        after = wish.after
        for _ in range(_TRIES):
            name = pod_name(wish.node, wish.mount, after=after)
            try:
                return self._index.put(await self._api.create(PODS, self._pod(wish, name), namespace=self._namespace))
            except AlreadyExists:
                with suppress(NotFound):
                    found = await self._api.get(PODS, name, namespace=self._namespace)
                    if _lives(found):
                        return self._index.put(found)
                    after = found["metadata"]["uid"]
        raise DriverError(f"no name is free for a pod of {wish.mount} on {wish.node}")

    async def delete(self, pod: Pod, *, grace: int | None = None) -> None:
        """Delete this pod and no other of its name; gone already is fine."""
        name = pod.metadata.name
        try:
            if FINALIZER in pod.metadata.finalizers:
                rest = [finalizer for finalizer in pod.metadata.finalizers if finalizer != FINALIZER]
                body = {"metadata": {"finalizers": rest, "uid": pod.metadata.uid}}
                await self._api.patch(PODS, name, body, namespace=self._namespace)
            await self._api.delete(PODS, name, namespace=self._namespace, uid=pod.metadata.uid, grace=grace)
        except (NotFound, Conflict):
            return
        self._index.leaves(pod)

    async def annotate(self, pod: Pod, annotations: dict[str, str | None]) -> None:
        """Set annotations; None removes one. A pod that is gone is fine."""
        with suppress(NotFound, Conflict):
            body = {"metadata": {"annotations": annotations, "uid": pod.metadata.uid}}
            await self._api.patch(PODS, pod.metadata.name, body, namespace=self._namespace)

    async def log(self, pod: Pod, *, container: str, previous: bool, lines: int = 20) -> str:
        """The client's last lines; empty if there are none."""
        try:
            return await self._api.log(
                pod.metadata.name, namespace=self._namespace, container=container, previous=previous, lines=lines
            )
        except DriverError as error:
            _log.debug("no log", pod=pod.metadata.name, cause=str(error))
            return ""

    async def warning(self, pod: Pod) -> str:
        """What Kubernetes complains of, if that is the last it says of this pod; else empty."""
        try:
            found = await self._api.list(
                EVENTS, namespace=self._namespace, fields=f"involvedObject.uid={pod.metadata.uid}"
            )
        except DriverError as error:
            _log.debug("no events", pod=pod.metadata.name, cause=str(error))
            return ""
        last = max(found["items"], key=lambda event: event.get("lastTimestamp") or "", default={"type": "Normal"})
        return "" if last["type"] == "Normal" else f"{last['reason']}: {last['message']}"

    def _pod(self, wish: Wish, name: str) -> dict[str, Any]:
        return MountPod(
            name=name,
            mount=wish.mount,
            node=wish.node,
            namespace=self._namespace,
            client=wish.plan.settings,
            pod=wish.plan.pod,
            filesystem=wish.plan.filesystem.name,
            targets=wish.targets,
            is_new=wish.is_new,
            has_requests=wish.has_requests,
        ).to_json(self._layout)

    async def _ensure_secret(self, plan: Plan) -> None:
        """Written only when it differs (behaviour.md 2.4)."""
        wanted = secret(plan.filesystem, volume_id=plan.settings.volume_id, namespace=self._namespace, owner=plan.owner)
        with suppress(AlreadyExists):
            await self._api.create(SECRETS, wanted, namespace=self._namespace)
            return
        name = wanted["metadata"]["name"]
        found = await self._api.get(SECRETS, name, namespace=self._namespace)
        owners = found["metadata"].get("ownerReferences") or []
        data = found.get("data") or {}
        if (found["metadata"].get("labels") or {}).get(OURS) != "true":
            raise InUse(f"the Secret {self._namespace}/{name} is somebody else's: it has no label {OURS}=true")
        # Pods of the earlier driver take theirs from the same Secret.
        stale = set() if _EARLIER in data else data.keys() - wanted["data"].keys()
        is_same = not stale and wanted["data"].items() <= data.items()
        if not is_same or not any(owner["uid"] == plan.owner.uid for owner in owners):
            body = {
                "metadata": {"ownerReferences": wanted["metadata"]["ownerReferences"]},
                "data": dict.fromkeys(stale) | wanted["data"],
            }
            await self._api.patch(SECRETS, name, body, namespace=self._namespace)


def _lives(found: dict[str, Any]) -> bool:
    return not found["metadata"].get("deletionTimestamp") and found.get("status", {}).get("phase") not in {
        "Failed",
        "Succeeded",
    }
