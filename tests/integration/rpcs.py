"""A valid request of each RPC that has fields, and what is never valid in it: bad input starts from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import betterproto2

from demo.driver import Driver
from demo.orchestrator import capability
from shared.api.csi.v1 import (
    CapacityRange,
    ControllerExpandVolumeRequest,
    CreateVolumeRequest,
    DeleteVolumeRequest,
    NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest,
    ValidateVolumeCapabilitiesRequest,
)

GIB: Final = 1 << 30


def create(driver: Driver, name: str) -> CreateVolumeRequest:
    return CreateVolumeRequest(
        name=name,
        capacity_range=CapacityRange(required_bytes=GIB, limit_bytes=2 * GIB),
        volume_capabilities=[capability()],
        parameters={"mountOptions": "writeback_cache"},
        secrets=driver.secrets,
        mutable_parameters={"any": "thing"},
    )


def delete(driver: Driver, name: str) -> DeleteVolumeRequest:
    return DeleteVolumeRequest(volume_id=name, secrets=driver.secrets)


def expand(driver: Driver, name: str) -> ControllerExpandVolumeRequest:
    return ControllerExpandVolumeRequest(
        volume_id=name,
        capacity_range=CapacityRange(required_bytes=GIB, limit_bytes=2 * GIB),
        secrets=driver.secrets,
        volume_capability=capability(),
    )


def validate(driver: Driver, name: str) -> ValidateVolumeCapabilitiesRequest:
    return ValidateVolumeCapabilitiesRequest(
        volume_id=name,
        volume_context={"subPath": name},
        volume_capabilities=[capability()],
        parameters={"mountOptions": ""},
        secrets=driver.secrets,
    )


def publish(driver: Driver, name: str) -> NodePublishVolumeRequest:
    return NodePublishVolumeRequest(
        volume_id="shared",
        publish_context={"any": "thing"},
        staging_target_path="/staging",
        target_path=f"{driver.pods}/{name}",
        volume_capability=capability(),
        secrets=driver.secrets,
        volume_context={"subPath": "shared", "mountOptions": ""},
    )


def unpublish(driver: Driver, name: str) -> NodeUnpublishVolumeRequest:
    return NodeUnpublishVolumeRequest(volume_id=name, target_path=f"{driver.pods}/{name}")


def stats(driver: Driver, name: str) -> NodeGetVolumeStatsRequest:
    path = f"{driver.pods}/{name}"
    return NodeGetVolumeStatsRequest(volume_id=name, volume_path=path, staging_target_path="/staging")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """`make` a valid request; a variant that matches `refused` is an INVALID_ARGUMENT; `undo` one that was accepted."""

    make: Callable[[Driver, str], Any]
    refused: str
    undo: Callable[[Any], tuple[str, betterproto2.Message]] | None = None


_SECRETS = (
    r"secrets\[name\].*|secrets\[metaurl\] (empty|blank|nul|newline|oversized)"
    r"|secrets\[storage\] (nul|newline|oversized)"
    r"|secrets\[bucket\] (dots|nul|newline|quotes|command|backticks|shell|option|long|oversized)"
)
_ID = r"volume_id (empty|nul|newline|long|oversized)"
_CAPABILITY = r"volume_capabilit(y|ies\[0\])( missing|\.mount missing|\.access_mode.*)"
_RANGE = r"capacity_range\.\w+=-.*"
RPCS = {
    "Controller/CreateVolume": Rpc(
        make=create,
        refused=rf"secrets missing|{_SECRETS}|{_CAPABILITY}|{_RANGE}|name (empty|dots|nul|newline|long|oversized)"
        r"|volume_capabilities missing|parameters.*(nul|newline|oversized).*",
        undo=lambda made: (
            "Controller/DeleteVolume",
            DeleteVolumeRequest(volume_id=made.name, secrets=made.secrets),
        ),
    ),
    "Controller/DeleteVolume": Rpc(make=delete, refused=rf"{_SECRETS}|{_ID}"),
    "Controller/ControllerExpandVolume": Rpc(
        make=expand,
        refused=rf"secrets missing|{_SECRETS}|{_ID}|{_RANGE}|capacity_range missing"
        r"|volume_capability\.(mount missing|access_mode.*)",
    ),
    "Controller/ValidateVolumeCapabilities": Rpc(
        make=validate, refused=rf"secrets missing|{_SECRETS}|{_ID}|volume_capabilities missing"
    ),
    "Node/NodePublishVolume": Rpc(
        make=publish,
        refused=rf"secrets missing|{_SECRETS}|{_ID}|{_CAPABILITY}|target_path.*"
        r"|volume_context\[subPath\] (dots|nul|newline|oversized)",
        undo=lambda made: (
            "Node/NodeUnpublishVolume",
            NodeUnpublishVolumeRequest(volume_id=made.volume_id, target_path=made.target_path),
        ),
    ),
    "Node/NodeUnpublishVolume": Rpc(make=unpublish, refused=rf"{_ID}|target_path.*"),
    "Node/NodeGetVolumeStats": Rpc(make=stats, refused=rf"{_ID}|volume_path (empty|nul|newline|oversized)"),
}
