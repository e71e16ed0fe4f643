"""From a volume's id to all that its client is made of, as of now: PersistentVolume, Secret, claim, configuration."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shared.domain import digest
from shared.errors import InvalidRequest, NotFound, NotReady
from shared.filesystem import Filesystem
from shared.informer import Informer
from shared.kubernetes import CLAIMS, PERSISTENT_VOLUMES, Kubernetes
from shared.manifests import Owner, variables
from shared.objects import Claim, PersistentVolume
from shared.pod_patch import Claim as PatchedClaim
from shared.pod_patch import Configuration, apply, fill
from shared.pod_settings import PodSettings, buffer_size
from shared.recorder import Reference
from shared.secret_ref import SecretRef
from shared.settings import ClientSettings, parse, unique_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A client as it is to be. `settings` hold the digest of `pod`."""

    settings: ClientSettings
    pod: PodSettings
    filesystem: Filesystem
    owner: Owner
    claim: Reference | None = None

    @property
    def identity(self) -> str:
        """Of what is mounted: a client with another one must not take over a connection."""
        return digest([self.filesystem.address, self.filesystem.name, self.settings.subdir.text])


class Volumes:
    """The driver's PersistentVolumes, by volume handle, whatever their names are."""

    def __init__(self, api: Kubernetes, *, driver: str) -> None:
        self._driver = driver
        self._informer = Informer(api, PERSISTENT_VOLUMES, PersistentVolume, is_packed=True, on_change=self._changed)
        self._names: dict[str, tuple[str, ...]] = {}  # of those that have a handle
        self._handles: dict[str, str] = {}
        self.synced = self._informer.synced

    async def run(self) -> None:
        await self._informer.run()

    def get(self, handle: str) -> PersistentVolume:
        """The one with this handle.

        Raises:
            NotReady: there is none (yet). InvalidRequest: there are two.
        """
        names = self._names.get(handle, ())
        if not names:
            raise NotReady(f"no PersistentVolume has the volumeHandle {handle} (yet)")
        if len(names) > 1:
            both = " and ".join(sorted(names))
            raise InvalidRequest(f"the PersistentVolumes {both} have the same volumeHandle {handle}: make it unique")
        return self._informer.objects[names[0]]

    def handle(self, unique: str) -> str:
        """The handle that makes this unique id.

        Raises:
            NotReady: no PersistentVolume has such a one.
        """
        if unique not in self._handles:
            raise NotReady(f"no PersistentVolume belongs to {unique}: was it deleted while it is in use?")
        return self._handles[unique]

    def _changed(self, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        before, now = self._handle(old), self._handle(new)
        if before == now:
            return
        if old is not None and before:
            rest = tuple(name for name in self._names.get(before, ()) if name != old.metadata.name)
            if rest:
                self._names[before] = rest
            elif self._names.pop(before, None):
                self._handles.pop(unique_id(before), None)
        if new is not None and now:
            self._names[now] = (*self._names.get(now, ()), new.metadata.name)
            self._handles[unique_id(now)] = now

    def _handle(self, volume: PersistentVolume | None) -> str:
        """Its handle as one text, however often it is kept; empty for none and for another driver's."""
        csi = volume.spec.csi if volume else None
        return sys.intern(csi.volume_handle) if csi and csi.driver == self._driver else ""


class Planner:
    """Reads the volume's Secret and claim by name each time: neither is watched, and a copy may be stale."""

    def __init__(
        self,
        api: Kubernetes,
        *,
        volumes: Volumes,
        defaults: PodSettings,
        node_labels: Callable[[str], Mapping[str, str]],
        namespace: str,
    ) -> None:
        """`namespace` is that of the mount pods, and so of the claims that they cache in."""
        self._namespace = namespace
        self._api = api
        self.volumes = volumes
        self._defaults = defaults
        self._node_labels = node_labels
        self.configuration = Configuration()

    async def plan(self, handle: str, *, node: str) -> Plan:
        """The client that a publish of this volume on this node gets now.

        Raises:
            InvalidRequest: names the key, option or field that can't be understood.
            NotReady: the volume, its Secret or the API server is not there.
        """
        volume = self.volumes.get(handle)
        csi = volume.spec.csi
        if csi is None or csi.node_publish_secret_ref is None:
            raise InvalidRequest(f"PersistentVolume {volume.metadata.name} has no nodePublishSecretRef")
        ref = SecretRef(namespace=csi.node_publish_secret_ref.namespace, name=csi.node_publish_secret_ref.name)
        try:
            filesystem = await ref.filesystem(self._api)
        except NotFound as error:
            raise NotReady(f"PersistentVolume {volume.metadata.name}: {error}") from None
        claim = await self._claim(volume)
        patch = self.configuration.merged(claim=_patched(claim), node_labels=self._node_labels(node))
        settings = parse(
            volume_id=handle,
            context=_with_patch(csi.volume_attributes, patch),
            mount_options=[*volume.spec.mount_options, *_reader(volume), *patch.get("mountOptions", ())],
            credentials=filesystem.credentials,
        )
        pod = PodSettings.parse(
            csi.volume_attributes,
            claim_annotations=claim.metadata.annotations if claim else {},
            defaults=self._defaults,
        )
        plan = _plan(settings, apply(pod, patch), filesystem=filesystem, volume=volume)
        known = variables(plan.settings, mount=plan.settings.mount_name, filesystem=filesystem.name)
        for cache in plan.pod.caches:
            source = fill(cache.source, known)
            await self._require_claim(source.get("persistentVolumeClaim", {}).get("claimName", ""))
        return plan

    async def _require_claim(self, name: str) -> None:
        """A pod whose claim is missing would wait for ever, and nobody would say why."""
        try:
            if name:
                await self._api.get(CLAIMS, name, namespace=self._namespace)
        except NotFound:
            raise NotReady(f"the claim {self._namespace}/{name}, which is to be the cache, does not exist") from None

    async def _claim(self, volume: PersistentVolume) -> Claim | None:
        reference = volume.spec.claim_ref
        if reference is None:
            return None
        try:
            found = await self._api.get(CLAIMS, reference.name, namespace=reference.namespace)
        except NotFound:
            return None
        return msgspec.convert(found, Claim)


def _plan(settings: ClientSettings, pod: PodSettings, *, filesystem: Filesystem, volume: PersistentVolume) -> Plan:
    """What is an option of the client and a part of its pod: the one follows from the other."""
    options = dict(settings.options)
    option = options.pop("cache-dir", "")
    pod = pod.with_cache_directories(option)
    if path := pod.cache_option(option):
        options["cache-dir"] = path
    if size := buffer_size(options.pop("buffer-size", ""), pod.resources):
        options["buffer-size"] = size
    owner = Owner(api_version="v1", kind="PersistentVolume", name=volume.metadata.name, uid=volume.metadata.uid)
    settings = replace(settings, options=tuple(sorted(options.items())), pod=pod.digest)
    return Plan(settings=settings, pod=pod, filesystem=filesystem, owner=owner, claim=_reference(volume))


def _reference(volume: PersistentVolume) -> Reference | None:
    claim = volume.spec.claim_ref
    if claim is None:
        return None
    return Reference(
        kind="PersistentVolumeClaim", api_version="v1", name=claim.name, namespace=claim.namespace, uid=claim.uid
    )


def _reader(volume: PersistentVolume) -> tuple[str, ...]:
    """As kubelet asks for it: a volume that may only be read gets a client that can only read."""
    return ("ro",) if volume.spec.access_modes == ("ReadOnlyMany",) else ()


def _patched(claim: Claim | None) -> PatchedClaim | None:
    if claim is None:
        return None
    return PatchedClaim(
        name=claim.metadata.name, storage_class=claim.spec.storage_class_name or "", labels=claim.metadata.labels
    )


def _with_patch(context: Mapping[str, str], patch: Mapping[str, Any]) -> dict[str, str]:
    """Two annotations of a patch are settings of the client (behaviour.md 7)."""
    annotations = patch.get("annotations") or {}
    moved = {"juicefs-delete-delay": "juicefs/mount-delete-delay", "juicefs/clean-cache": "juicefs/clean-cache"}
    return {**context, **{key: str(annotations[name]) for name, key in moved.items() if name in annotations}}
