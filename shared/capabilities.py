"""Which volume capabilities the driver has: the one rule that controller and node both check."""

from typing import Final

from shared.api.csi.v1 import VolumeCapability, VolumeCapabilityAccessModeMode
from shared.errors import InvalidRequest

_Mode = VolumeCapabilityAccessModeMode
# JuiceFS lets everybody write who may, and one node can see to it that there is one target; what no node sees is that
# of several nodes only one writes.
SUPPORTED: Final = frozenset(
    {
        _Mode.SINGLE_NODE_WRITER,
        _Mode.SINGLE_NODE_SINGLE_WRITER,
        _Mode.SINGLE_NODE_MULTI_WRITER,
        _Mode.SINGLE_NODE_READER_ONLY,
        _Mode.MULTI_NODE_MULTI_WRITER,
        _Mode.MULTI_NODE_READER_ONLY,
    }
)


def check(capability: VolumeCapability) -> None:
    """Accept what JuiceFS can do: a mounted file system, in the modes of `SUPPORTED`.

    Raises:
        InvalidRequest: names what can't be had.
    """
    if capability.block is not None or capability.mount is None:
        raise InvalidRequest("volume_capability: only mounted file systems are supported, no block devices")
    mode = capability.access_mode.mode if capability.access_mode is not None else _Mode.UNKNOWN
    if mode not in SUPPORTED:
        name = getattr(mode, "name", None) or "unknown"
        raise InvalidRequest(f"volume_capability: access mode {name} is not supported")
