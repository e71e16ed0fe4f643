"""CSI Controller: parse, ask `Volumes`, translate. Errors are raised in the driver's words (`shared.errors`)."""

from collections.abc import Iterable, Mapping
from typing import Final

from services.controller.volumes import Volumes, is_of_earlier_driver
from shared import capabilities, settings
from shared.api.csi.v1 import (
    CapacityRange,
    ControllerBase,
    ControllerExpandVolumeRequest,
    ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse,
    ControllerServiceCapability,
    ControllerServiceCapabilityRpc,
    ControllerServiceCapabilityRpcType,
    CreateVolumeRequest,
    CreateVolumeResponse,
    DeleteVolumeRequest,
    DeleteVolumeResponse,
    ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
    ValidateVolumeCapabilitiesResponseConfirmed,
    Volume,
    VolumeCapability,
    VolumeCapabilityAccessModeMode,
)
from shared.api.juicefs.v1 import VolumeCreated, VolumeDeleted, VolumeExpanded
from shared.domain import Subpath, require_text
from shared.errors import InvalidRequest, NotFound
from shared.events import Say
from shared.filesystem import Filesystem

_Mode = VolumeCapabilityAccessModeMode
_Offered = ControllerServiceCapabilityRpcType
_READERS: Final = frozenset({_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY})
_TEXT_BYTES: Final = 4096


class ControllerService(ControllerBase):
    """ControllerGetVolume is not offered: its request brings no secrets, so nothing true could be said."""

    def __init__(self, *, volumes: Volumes, say: Say) -> None:
        self._volumes = volumes
        self._say = say

    async def create_volume(self, message: CreateVolumeRequest) -> CreateVolumeResponse:
        """CSI spec, CreateVolume; behaviour.md 1.4. The volume's directory is where publish will look for it."""
        name = _name(message.name)
        _check_writable(message.volume_capabilities)
        if message.volume_content_source is not None:
            raise InvalidRequest("volume_content_source: volumes can't be made from others yet")
        fs = _filesystem(message.secrets, parameter="provisioner-secret-name")
        context = _texts(message.parameters, field="parameters") | {"subPath": name}
        wanted = settings.parse(
            volume_id=name,
            context=context,
            mount_options=[flag for capability in message.volume_capabilities for flag in _flags(capability)],
            credentials=fs.credentials,
        )
        required, limit = _range(message.capacity_range)
        volume = await self._volumes.create(fs, name, path=wanted.subdir, required=required, limit=limit)
        self._say(VolumeCreated(capacity_bytes=volume.capacity), volume_id=name)
        return CreateVolumeResponse(
            volume=Volume(
                volume_id=name,
                capacity_bytes=volume.capacity,
                volume_context=context | {"capacity": str(volume.capacity)},
            )
        )

    async def delete_volume(self, message: DeleteVolumeRequest) -> DeleteVolumeResponse:
        """CSI spec, DeleteVolume: what this kind of driver did not create is left alone, and that is a success."""
        volume_id = require_text(message.volume_id, field="volume_id")
        if not message.secrets and not is_of_earlier_driver(volume_id):
            return DeleteVolumeResponse()
        fs = _filesystem(message.secrets, parameter="provisioner-secret-name")
        if await self._volumes.delete(fs, volume_id):
            self._say(VolumeDeleted(), volume_id=volume_id)
        return DeleteVolumeResponse()

    async def controller_expand_volume(self, message: ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse:
        """CSI spec, ControllerExpandVolume: while it is used, and without a part for the node."""
        volume_id = require_text(message.volume_id, field="volume_id")
        if message.volume_capability is not None:
            capabilities.check(message.volume_capability)
        required, limit = _range(message.capacity_range)
        if not required and not limit:
            raise InvalidRequest("capacity_range is empty: it is required")
        fs = _filesystem(message.secrets, parameter="controller-expand-secret-name")
        capacity = await self._volumes.expand(fs, volume_id, required=required, limit=limit)
        self._say(VolumeExpanded(capacity_bytes=capacity), volume_id=volume_id)
        return ControllerExpandVolumeResponse(capacity_bytes=capacity, node_expansion_required=False)

    async def validate_volume_capabilities(
        self, message: ValidateVolumeCapabilitiesRequest
    ) -> ValidateVolumeCapabilitiesResponse:
        """CSI spec, ValidateVolumeCapabilities. Without secrets nobody can say whether the volume is there."""
        volume_id = require_text(message.volume_id, field="volume_id")
        if not message.volume_capabilities:
            raise InvalidRequest("volume_capabilities is empty: it is required")
        fs = _filesystem(message.secrets, parameter="provisioner-secret-name")
        if await self._volumes.get(fs, volume_id) is None:
            raise NotFound(f"volume {volume_id} was not created by this driver")
        try:
            for capability in message.volume_capabilities:
                capabilities.check(capability)
        except InvalidRequest as error:
            return ValidateVolumeCapabilitiesResponse(message=str(error))
        return ValidateVolumeCapabilitiesResponse(
            confirmed=ValidateVolumeCapabilitiesResponseConfirmed(
                volume_context=message.volume_context,
                volume_capabilities=message.volume_capabilities,
                parameters=message.parameters,
            )
        )

    async def controller_get_capabilities(
        self, message: ControllerGetCapabilitiesRequest
    ) -> ControllerGetCapabilitiesResponse:
        offered = (_Offered.CREATE_DELETE_VOLUME, _Offered.EXPAND_VOLUME, _Offered.SINGLE_NODE_MULTI_WRITER)
        return ControllerGetCapabilitiesResponse(
            capabilities=[
                ControllerServiceCapability(rpc=ControllerServiceCapabilityRpc(type=rpc_type)) for rpc_type in offered
            ]
        )


def _name(value: str) -> str:
    """The volume's name, which becomes its id and the name of its directory: one component, taken literally."""
    if "/" in require_text(value, field="name"):
        raise InvalidRequest("name must not contain '/'")
    return Subpath.parse(value, field="name").text


def _check_writable(wanted: Iterable[VolumeCapability]) -> None:
    """A new volume is empty, so one that nobody may write is of no use (behaviour.md 1.4)."""
    modes = set()
    for capability in wanted:
        capabilities.check(capability)
        modes.add(capability.access_mode.mode if capability.access_mode else _Mode.UNKNOWN)
    if not modes:
        raise InvalidRequest("volume_capabilities is empty: it is required")
    if modes <= _READERS:
        raise InvalidRequest("volume_capabilities: a new volume must be writable; use a static volume to read only")


def _filesystem(secrets: Mapping[str, str], *, parameter: str) -> Filesystem:
    if not secrets:
        raise InvalidRequest(f"secrets are missing: set csi.storage.k8s.io/{parameter} in the StorageClass")
    return Filesystem.parse(secrets)


def _range(wanted: CapacityRange | None) -> tuple[int, int]:
    sizes = (wanted.required_bytes, wanted.limit_bytes) if wanted else (0, 0)
    if not all(isinstance(size, int) for size in sizes):  # the wire's decoder is lenient
        raise InvalidRequest("capacity_range must hold numbers")
    return sizes


def _flags(capability: VolumeCapability) -> list[str]:
    return list(capability.mount.mount_flags) if capability.mount else []


def _texts(values: Mapping[str, str], *, field: str) -> dict[str, str]:
    for key, value in values.items():
        require_text(key, field=f"a key of {field}")
        if value != "":
            require_text(value, field=f"{field}[{key}]", limit=_TEXT_BYTES)
    return dict(values)
