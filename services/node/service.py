"""CSI Node: what kubelet asks. Parses, calls `Targets`, translates; nothing is decided here."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from services.node.clients import Wanted
from services.node.probe import DeadMount, Probes, Unmounted
from services.node.targets import Publication, Targets
from shared import capabilities
from shared.api.csi.v1 import (
    NodeBase,
    NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse,
    NodeGetInfoRequest,
    NodeGetInfoResponse,
    NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest,
    NodePublishVolumeResponse,
    NodeServiceCapability,
    NodeServiceCapabilityRpc,
    NodeServiceCapabilityRpcType,
    NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse,
    VolumeCapability,
    VolumeCapabilityAccessModeMode,
    VolumeCondition,
    VolumeUsage,
    VolumeUsageUnit,
)
from shared.domain import TargetPath, require_text
from shared.errors import InvalidRequest, NotFound, NotReady
from shared.filesystem import Filesystem
from shared.metrics import Metrics
from shared.mounttable import MountTable
from shared.settings import parse

_CAPABILITIES = (
    NodeServiceCapabilityRpcType.GET_VOLUME_STATS,
    NodeServiceCapabilityRpcType.VOLUME_CONDITION,
    NodeServiceCapabilityRpcType.SINGLE_NODE_MULTI_WRITER,
)
_POD_UID = re.compile(r"/pods/(?P<uid>[^/]+)/volumes/")
_READERS = (
    VolumeCapabilityAccessModeMode.MULTI_NODE_READER_ONLY,
    VolumeCapabilityAccessModeMode.SINGLE_NODE_READER_ONLY,
)


class NodeService(NodeBase):
    """`pods` is the only place where targets may lie (kubelet's root directory)."""

    def __init__(
        self, *, node: str, pods: str, table: MountTable, targets: Targets, probes: Probes, metrics: Metrics
    ) -> None:
        self._node = node
        self._pods = pods
        self._real_pods = os.path.realpath(pods)
        self._table = table
        self._targets = targets
        self._probes = probes
        self._metrics = metrics

    async def node_publish_volume(self, message: NodePublishVolumeRequest) -> NodePublishVolumeResponse:
        """CSI spec, NodePublishVolume."""
        await self._targets.publish(self._publication(message))
        return NodePublishVolumeResponse()

    def _publication(self, message: NodePublishVolumeRequest) -> Publication:
        volume_id = require_text(message.volume_id, field="volume_id")
        target = self._target(message.target_path)
        capability = message.volume_capability
        if capability is None:
            raise InvalidRequest("volume_capability is missing: it is required")
        capabilities.check(capability)
        if not message.secrets:
            raise InvalidRequest(
                "no credentials: set csi.storage.k8s.io/node-publish-secret-name in the StorageClass, "
                "or nodePublishSecretRef in the PersistentVolume"
            )
        wanted = Wanted(
            volume_id=volume_id,
            context=_texts(message.volume_context, field="volume_context"),
            mount_options=_mount_options(capability),
            secrets=_texts(message.secrets, field="secrets"),
            target=str(target),
        )
        # Mountpod parses both again; here bad input is refused before anything is done.
        Filesystem.parse(wanted.secrets)
        parse(volume_id=volume_id, context=wanted.context, mount_options=wanted.mount_options, credentials="")
        mode = capability.access_mode.mode if capability.access_mode is not None else None
        return Publication(
            wanted=wanted,
            target=target,
            read_only=bool(message.readonly),
            exclusive=mode == VolumeCapabilityAccessModeMode.SINGLE_NODE_SINGLE_WRITER,
        )

    async def node_unpublish_volume(self, message: NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse:
        """CSI spec, NodeUnpublishVolume."""
        volume_id = require_text(message.volume_id, field="volume_id")
        target = self._target(message.target_path)
        self._targets.unpublish(target, volume_id)
        with suppress(KeyError):
            self._metrics.path_health.remove(*_health_labels(volume_id, str(target)))
        return NodeUnpublishVolumeResponse()

    async def node_get_volume_stats(self, message: NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse:
        """CSI spec, NodeGetVolumeStats: usage as the file system tells it, and whether it can be used at all."""
        volume_id = require_text(message.volume_id, field="volume_id")
        # Any path may be asked about; only a target is ever found in the mount table, and nothing else touches it.
        path = require_text(message.volume_path, field="volume_path", limit=4096)
        entry = None
        with suppress(InvalidRequest):
            path = str(self._target(path))
            entry = self._table.top(path)
        unpublished = NotFound(f"volume {volume_id} is not published at {path}")
        if entry is None or not entry.is_juicefs:
            raise unpublished
        health = self._metrics.path_health.labels(*_health_labels(volume_id, path))
        try:
            size = await self._probes.ask(entry)
        except Unmounted:
            raise unpublished from None
        except DeadMount as error:
            health.set(0)
            return NodeGetVolumeStatsResponse(volume_condition=VolumeCondition(abnormal=True, message=str(error)))
        except NotReady:
            health.set(0)
            raise
        health.set(1)
        return NodeGetVolumeStatsResponse(
            usage=_usage(size), volume_condition=VolumeCondition(abnormal=False, message="the client answers")
        )

    def _target(self, value: str) -> TargetPath:
        """The path as the mount table shows it: the pod directory itself may be a symlink of the machine's."""
        return replace(TargetPath.parse(value, root=self._pods), root=self._real_pods)

    async def node_get_info(self, message: NodeGetInfoRequest) -> NodeGetInfoResponse:
        """CSI spec, NodeGetInfo: no topology, no limit."""
        del message
        return NodeGetInfoResponse(node_id=self._node)

    async def node_get_capabilities(self, message: NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse:
        """CSI spec, NodeGetCapabilities."""
        del message
        return NodeGetCapabilitiesResponse(
            capabilities=[NodeServiceCapability(rpc=NodeServiceCapabilityRpc(type=kind)) for kind in _CAPABILITIES]
        )


def _health_labels(volume_id: str, path: str) -> tuple[str, str, str]:
    """Volume, path, and the pod's UID or else the path again (behaviour.md 8.5)."""
    pod = _POD_UID.search(path)
    return volume_id, path, pod["uid"] if pod else path


def _mount_options(capability: VolumeCapability) -> tuple[str, ...]:
    """The volume's own options; a volume that may only be read gets a client that can only read."""
    flags = capability.mount.mount_flags if capability.mount is not None else []
    mode = capability.access_mode.mode if capability.access_mode is not None else None
    return (*flags, "ro") if mode in _READERS else tuple(flags)


def _texts(values: Mapping[str, str], *, field: str) -> dict[str, str]:
    """A map as the wire promises it: a lenient decoder lets other types through."""
    if not all(isinstance(text, str) for pair in values.items() for text in pair):
        raise InvalidRequest(f"{field} must map text to text")
    return dict(values)


def _usage(size: os.statvfs_result) -> list[VolumeUsage]:
    """Bytes and inodes, as `df` shows them."""
    block = size.f_frsize
    return [
        VolumeUsage(
            unit=VolumeUsageUnit.BYTES,
            total=size.f_blocks * block,
            available=size.f_bavail * block,
            used=(size.f_blocks - size.f_bfree) * block,
        ),
        VolumeUsage(
            unit=VolumeUsageUnit.INODES,
            total=size.f_files,
            available=size.f_favail,
            used=size.f_files - size.f_ffree,
        ),
    ]
