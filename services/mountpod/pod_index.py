"""The mount pods of all nodes, by node and mount: what the API server last said of them, and what we just made."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from shared.errors import InvalidRequest
from shared.informer import Informer
from shared.kubernetes import PODS, Kubernetes
from shared.manifests import CONTAINER, DELETE_DELAY, MOUNT, MOUNT_POD
from shared.objects import Pod
from shared.settings import ClientSettings, is_mount_name, parse

FINALIZER: Final = "juicefs.com/finalizer"
"""Of the earlier driver's mount pods."""
_NAME: Final = "juicefs-"
_UNSEEN: Final = 60.0
"""Seconds until the watch has told of what was made."""


class PodIndex:
    """Kept by a watch."""

    def __init__(self, api: Kubernetes, *, namespace: str) -> None:
        self._informer = Informer(
            api,
            PODS,
            Pod,
            namespace=namespace,
            labels=f"app.kubernetes.io/name={MOUNT_POD}",
            on_change=self._changed,
        )
        self._pods: defaultdict[tuple[str, str], dict[str, Pod]] = defaultdict(dict)
        self._unseen: dict[str, float] = {}
        self._listeners: dict[str, Callable[[str], None]] = {}
        self.synced = self._informer.synced

    @property
    def is_current(self) -> bool:
        return self._informer.is_current

    async def run(self) -> None:
        await self._informer.run()

    @contextmanager
    def listening(self, node: str, changed: Callable[[str], None]) -> Iterator[None]:
        """While inside, `changed` is told the mount whose pods have changed."""
        self._listeners[node] = changed
        try:
            yield
        finally:
            del self._listeners[node]

    def of(self, node: str, mount: str) -> list[Pod]:
        """The pods of one mount, the oldest first."""
        self._drop_unseen(node, mount)
        pods = self._pods.get((node, mount), {}).values()
        return sorted(pods, key=lambda pod: (pod.metadata.creation_timestamp or "", pod.metadata.name))

    def mounts(self, node: str) -> set[str]:
        """The mounts of a node that have pods."""
        return {mount for at, mount in self._pods if at == node}

    def put(self, created: dict[str, Any]) -> Pod:
        """What we made, before the API server's watch tells of it."""
        pod = msgspec.convert(created, Pod)
        key = _key(pod)
        if key is not None and pod.metadata.uid not in self._pods[key]:
            self._pods[key][pod.metadata.uid] = pod
            self._unseen[pod.metadata.uid] = _now()
        return pod

    def _drop_unseen(self, node: str, mount: str) -> None:
        """What we made and the API server's watch never told of: it came and went while there was none."""
        known = self._pods.get((node, mount), {})
        for uid in [uid for uid in known if self._unseen.get(uid, _now()) < _now() - _UNSEEN and self.is_current]:
            del known[uid], self._unseen[uid]
        if not known:
            self._pods.pop((node, mount), None)

    def leaves(self, pod: Pod) -> None:
        """What we deleted, before the API server's watch tells of it: nobody is to take it for one that serves."""
        key = _key(pod)
        known = self._pods[key].get(pod.metadata.uid) if key is not None and key in self._pods else None
        if key is not None and known is not None and not known.metadata.deletion_timestamp:
            metadata = replace(known.metadata, deletion_timestamp=known.metadata.creation_timestamp or "now")
            self._pods[key][pod.metadata.uid] = replace(known, metadata=metadata)

    def _changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        key = _key(pod) if pod is not None else None
        if pod is None or key is None:
            return
        self._unseen.pop(pod.metadata.uid, None)
        if new is not None:
            known = self._pods[key].get(pod.metadata.uid)
            if known is None or not known.metadata.deletion_timestamp or pod.metadata.deletion_timestamp:
                self._pods[key][pod.metadata.uid] = pod
        elif key in self._pods:
            self._pods[key].pop(pod.metadata.uid, None)
            if not self._pods[key]:
                del self._pods[key]
        node, mount = key
        if changed := self._listeners.get(node):
            changed(mount)


def _key(pod: Pod) -> tuple[str, str] | None:
    """(node, mount): by the annotation of ours, or by what a pod that the earlier driver made mounts, or its name."""
    node = pod.spec.node_name
    named = pod.metadata.name.removeprefix(f"{_NAME}{node}-")
    mount = pod.metadata.annotations.get(MOUNT) or _mounted(pod) or named
    return (node, mount) if node and is_mount_name(mount) else None


def _mounted(pod: Pod) -> str:
    """One that was brought back has another name; its command's last line says what it mounts (behaviour.md 4.2)."""
    for container in pod.spec.containers:
        if container.name == CONTAINER and container.command:
            words = container.command[-1].strip().rpartition("\n")[2].removeprefix("exec ").split()
            return words[2].rpartition("/")[2] if len(words) > 2 else ""  # noqa: PLR2004 - program, source, directory
    return ""


def settings_of(mount: str, pods: list[Pod]) -> ClientSettings:
    """What is known of a client that somebody else planned: whose it is, and how long it stays without users."""
    volume = mount.rpartition("-")[0]
    for pod in pods:
        with suppress(InvalidRequest):
            context = {"juicefs/mount-delete-delay": pod.metadata.annotations.get(DELETE_DELAY, "")}
            return parse(volume_id=volume, context=context, mount_options=(), credentials="")
    return parse(volume_id=volume, context={}, mount_options=(), credentials="")


def _now() -> float:
    return asyncio.get_running_loop().time()
