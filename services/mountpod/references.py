"""What annotations of a mount's pod tell people and tools: its targets, when it will end; nothing here decides by them.

Written behind, and together: a burst of publishes is one write.
"""

import asyncio
import re
from typing import Final

import structlog

from services.mountpod.pod_index import PodIndex
from services.mountpod.pod_maker import PodMaker
from services.mountpod.pod_state import verdict
from shared.api.juicefs.v1 import Event, MountReport
from shared.errors import DriverError
from shared.manifests import CONTAINER, reference, references

_BEHIND: Final = 1.0  # seconds
_LOG_PAUSES: Final = (0.0, 0.5, 2.0, 5.0)  # seconds
_UUID: Final = re.compile(r"Disk cache \(\S*?/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/")
_OURS: Final = "/volumes/kubernetes.io~csi/"
"""Kubelet's own binds of ours (volume-subpaths) are references, but not ones that a tool looks for."""

_log = structlog.get_logger()


class References:
    """Of one node."""

    def __init__(self, *, node: str, index: PodIndex, maker: PodMaker) -> None:
        self._node = node
        self._index = index
        self._maker = maker
        self._targets: dict[str, set[str]] = {}
        self._extra: dict[str, dict[str, str | None]] = {}
        self._changed = asyncio.Event()
        self._names: set[str] = set()

    def expects(self, name: str, target: str) -> None:
        """A publish is about to bind it: a pod that is made for it names it from the start."""
        self._targets.setdefault(name, set()).add(target)

    def targets(self, name: str) -> tuple[str, ...]:
        return tuple(sorted(self._targets.get(name, set())))

    def set(self, name: str, key: str, value: str | None) -> None:
        """Another annotation; None removes it."""
        self._extra.setdefault(name, {})[key] = value
        self._note(name)

    async def note_uuid(self, name: str) -> None:
        """Whose caches the client has, by its log: what cleans them is looked for by this. It comes a little late."""
        for pause in _LOG_PAUSES:
            await asyncio.sleep(pause)
            for pod in self._index.of(self._node, name):
                text = await self._maker.log(pod, container=CONTAINER, previous=False, lines=200)
                if found := _UUID.search(text):
                    self.set(name, "juicefs-uuid", found[1])
                    return

    def found(self, name: str, report: MountReport | None) -> None:
        """What the node reports is what there is."""
        self._targets[name] = {target for target in report.targets if _OURS in target} if report else set()
        self._note(name)

    def hear(self, event: Event) -> None:
        if event.target_bound is not None:
            self._targets.setdefault(event.mount, set()).add(event.target_bound.target)
            self._note(event.mount)
        elif event.target_unbound is not None and event.mount in self._targets:
            self._targets[event.mount].discard(event.target_unbound.target)
            self._note(event.mount)

    def forget(self, name: str) -> None:
        self._targets.pop(name, None)
        self._extra.pop(name, None)

    def _note(self, name: str) -> None:
        self._names.add(name)
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_BEHIND)
            self._changed.clear()
            names, self._names = self._names, set()
            for name in names:
                try:
                    await self._write(name)
                except DriverError as error:
                    _log.warning("references not written", node=self._node, mount=name, error=str(error))

    async def _write(self, name: str) -> None:
        """Only what differs."""
        wanted = self._targets.get(name, set())
        for pod in self._index.of(self._node, name):
            if not verdict(pod).lives:
                continue
            present = references(pod.metadata.annotations)
            changes: dict[str, str | None] = {reference(target): target for target in wanted - present}
            changes |= {reference(target): None for target in present - wanted}
            extra = self._extra.get(name, {})
            changes |= {key: value for key, value in extra.items() if pod.metadata.annotations.get(key) != value}
            if changes:
                await self._maker.annotate(pod, changes)
