"""The claims, PersistentVolumes and StorageClasses of a cluster, as watched, and Kubernetes Events about them."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import structlog

from shared.errors import Busy, DriverError
from shared.informer import Informer
from shared.kubernetes import CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES, Kubernetes
from shared.objects import Claim, PersistentVolume, StorageClass
from shared.recorder import Recorder, Reference

_log = structlog.get_logger()

T = TypeVar("T")
Listener: TypeAlias = Callable[[T | None, T | None], None]
"""Called with an object as it was and as it is; None where it wasn't or isn't."""


class Cluster:
    """One list and one watch of each kind, for whoever listens. `driver` is the name that the objects ask for."""

    def __init__(self, api: Kubernetes, *, recorder: Recorder, driver: str) -> None:
        self.api = api
        self.driver = driver
        self._recorder = recorder
        self._on_claim: list[Listener[Claim]] = []
        self._on_volume: list[Listener[PersistentVolume]] = []
        self._on_class: list[Listener[StorageClass]] = []
        self.claims = Informer(api, CLAIMS, Claim, is_packed=True, on_change=_each(self._on_claim))
        self.volumes = Informer(
            api, PERSISTENT_VOLUMES, PersistentVolume, is_packed=True, on_change=_each(self._on_volume)
        )
        self.classes = Informer(api, STORAGE_CLASSES, StorageClass, on_change=_each(self._on_class))

    def listen(
        self,
        *,
        claim: Listener[Claim] | None = None,
        volume: Listener[PersistentVolume] | None = None,
        storage_class: Listener[StorageClass] | None = None,
    ) -> None:
        """Before `run`: what is there already is told too."""
        if claim:
            self._on_claim.append(claim)
        if volume:
            self._on_volume.append(volume)
        if storage_class:
            self._on_class.append(storage_class)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.classes.run(), name="watch StorageClasses")
            tasks.create_task(self.volumes.run(), name="watch PersistentVolumes")
            tasks.create_task(self.claims.run(), name="watch claims")

    async def synced(self) -> None:
        """Wait until all is known that is there: before, a name that isn't known means nothing."""
        for synced in (self.classes.synced, self.volumes.synced, self.claims.synced):
            await synced.wait()

    def volume_of(self, claim: Claim) -> PersistentVolume | None:
        """The one that the claim is bound to."""
        volume = self.volumes.objects.get(claim.spec.volume_name or "")
        reference = volume.spec.claim_ref if volume else None
        return volume if reference and reference.uid == claim.metadata.uid else None

    def tell(self, about: Claim | PersistentVolume, reason: str, message: str, *, is_warning: bool = False) -> None:
        """An Event, as `kubectl describe` shows it."""
        kind = "PersistentVolumeClaim" if isinstance(about, Claim) else "PersistentVolume"
        reference = Reference(
            kind=kind,
            api_version="v1",
            name=about.metadata.name,
            namespace=about.metadata.namespace,
            uid=about.metadata.uid,
        )
        self._recorder.say(reference, reason=reason, message=message, is_warning=is_warning)

    def warn(self, about: Claim | PersistentVolume, reason: str, error: Exception) -> None:
        """An Event with the driver's words. What is no word of ours is only named, and logged."""
        if isinstance(error, Busy):
            return  # somebody else is at it, and the next try will find out
        if isinstance(error, DriverError):
            self.tell(about, reason, str(error), is_warning=True)
            return
        self.tell(about, reason, f"unexpected {type(error).__name__}: see the controller's log", is_warning=True)
        _log.error("failed unexpectedly", reason=reason, about=about.key, exc_info=error)


def _each(listeners: list[Listener[T]]) -> Listener[T]:
    def tell(old: T | None, new: T | None) -> None:
        for listener in listeners:
            listener(old, new)

    return tell
