"""What the orchestrator asks of the controller, before any file system is touched."""

from dataclasses import dataclass, field, replace
from typing import Any

import betterproto2
import pytest

from services.controller.records import Record
from services.controller.service import ControllerService
from services.controller.volumes import is_of_earlier_driver
from shared.api.csi.v1 import (
    CapacityRange,
    ControllerExpandVolumeRequest,
    ControllerGetCapabilitiesRequest,
    CreateVolumeRequest,
    CreateVolumeResponse,
    DeleteVolumeRequest,
    ValidateVolumeCapabilitiesRequest,
    VolumeCapability,
    VolumeCapabilityAccessMode,
    VolumeCapabilityAccessModeMode,
    VolumeCapabilityBlockVolume,
    VolumeCapabilityMountVolume,
    VolumeContentSource,
)
from shared.api.juicefs.v1 import VolumeCreated, VolumeDeleted, VolumeExpanded
from shared.domain import GIB, Subpath
from shared.errors import InvalidRequest, NotFound
from shared.filesystem import Filesystem
from shared.settings import parse

Mode = VolumeCapabilityAccessModeMode
MARK = "s3cr3t-mark"
SECRETS = {"name": "demo", "metaurl": f"redis://:{MARK}@host"}
PVC = "pvc-76d2afa7-d1c1-419a-b971-b99da0b2b89c"
HOSTILE = ["..", ".", "a/b", "/", "", "a\0b", "a\nb", "x" * 300]
LITERAL = ["'", '"', "$(reboot)", "`reboot`", "a b", "-x", "%2e%2e", "ünïcode"]


@dataclass
class Volumes:
    """Remembers what it is asked; has one volume, `v`."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def create(self, fs: Filesystem, volume_id: str, *, path: Subpath, required: int, limit: int) -> Record:
        self.asked.append((volume_id, str(path), required, limit))
        return Record(volume_id=volume_id, path=path, capacity=required)

    async def delete(self, fs: Filesystem, volume_id: str) -> bool:
        self.asked.append((volume_id,))
        return volume_id == "v"

    async def expand(self, fs: Filesystem, volume_id: str, *, required: int, limit: int) -> int:
        self.asked.append((volume_id, required, limit))
        return required

    async def get(self, fs: Filesystem, volume_id: str) -> Record | None:
        return Record(volume_id="v", path=Subpath(text="v"), capacity=0) if volume_id == "v" else None


class Controller:
    """The service, the volumes it asks, and what it says."""

    def __init__(self) -> None:
        self.volumes = Volumes()
        self.said: list[tuple[betterproto2.Message, str]] = []
        self.service = ControllerService(volumes=self.volumes, say=self._say)  # type: ignore[arg-type]

    def _say(self, what: betterproto2.Message, *, volume_id: str = "", mount: str = "") -> None:
        self.said.append((what, volume_id))

    async def create(self, **changes: Any) -> CreateVolumeResponse:
        return await self.service.create_volume(replace(CREATE, **changes))


def capability(mode: Mode = Mode.MULTI_NODE_MULTI_WRITER, *flags: str) -> VolumeCapability:
    return VolumeCapability(
        mount=VolumeCapabilityMountVolume(mount_flags=list(flags)), access_mode=VolumeCapabilityAccessMode(mode=mode)
    )


CREATE = CreateVolumeRequest(
    name="v", volume_capabilities=[capability()], secrets=SECRETS, capacity_range=CapacityRange(required_bytes=GIB)
)
BLOCK = VolumeCapability(
    block=VolumeCapabilityBlockVolume(), access_mode=VolumeCapabilityAccessMode(mode=Mode.SINGLE_NODE_WRITER)
)


@pytest.fixture
def controller() -> Controller:
    return Controller()


async def test_a_volume_is_named_as_it_was_asked_for(controller: Controller) -> None:
    """Behaviour.md 1.4: the context is the parameters, `subPath` and `capacity`."""
    reply = await controller.create(parameters={"juicefs/clean-cache": "true"})

    assert reply.volume
    assert (reply.volume.volume_id, reply.volume.capacity_bytes) == ("v", GIB)
    assert reply.volume.volume_context == {"juicefs/clean-cache": "true", "subPath": "v", "capacity": str(GIB)}
    assert controller.said == [(VolumeCreated(capacity_bytes=GIB), "v")]


@pytest.mark.parametrize(
    ("parameters", "flags", "path"),
    [
        ({}, (), "/v"),
        ({"mountOptions": "subdir=a/b,ro"}, (), "/a/b/v"),
        ({}, ("subdir=/c/",), "/c/v"),
        ({"mountOptions": "subdir=a"}, ("subdir=c",), "/c/v"),
        ({"subPath": "other"}, (), "/v"),
    ],
)
async def test_the_directory_is_where_publish_looks_for_it(
    parameters: dict[str, str], flags: tuple[str, ...], path: str
) -> None:
    """Both read the same options in the same way."""
    controller = Controller()
    reply = await controller.create(
        parameters=parameters, volume_capabilities=[capability(Mode.MULTI_NODE_MULTI_WRITER, *flags)]
    )

    assert controller.volumes.asked == [("v", path, GIB, 0)]
    assert reply.volume
    context = reply.volume.volume_context
    assert str(parse(volume_id="v", context=context, mount_options=flags, credentials="").subdir) == path


@pytest.mark.parametrize(
    "change",
    [
        *({"name": name} for name in HOSTILE),
        {"volume_capabilities": []},
        {"volume_capabilities": [VolumeCapability()]},
        {"volume_capabilities": [BLOCK]},
        {"volume_capabilities": [capability(Mode.UNKNOWN)]},
        {"volume_capabilities": [capability(Mode.MULTI_NODE_SINGLE_WRITER)]},
        {"volume_capabilities": [capability(Mode.MULTI_NODE_READER_ONLY)]},
        {"volume_capabilities": [capability(), BLOCK]},
        {"volume_capabilities": [capability(Mode.MULTI_NODE_MULTI_WRITER, "subdir=..")]},
        {"volume_content_source": VolumeContentSource()},
        {"parameters": {"mountOptions": "subdir=a/../b"}},
        {"parameters": {"juicefs/mount-delete-delay": "soon"}},
        {"parameters": {"a\0": "b"}},
        {"parameters": {"a": "b\n"}},
        {"parameters": {"a": "x" * 5000}},
        {"secrets": {}},
        {"secrets": {"name": "demo"}},
        {"secrets": SECRETS | {"envs": "["}},
        {"name": 7},
        {"parameters": {"a": 7}},
        {"capacity_range": CapacityRange(required_bytes="7")},  # type: ignore[arg-type]
    ],
)  # fmt: skip
async def test_a_request_that_can_not_be_carried_out_has_no_effect(
    controller: Controller, change: dict[str, Any]
) -> None:
    """INVALID_ARGUMENT before anything is done, and no secret in the message."""
    with pytest.raises(InvalidRequest) as refusal:
        await controller.create(**change)

    assert MARK not in str(refusal.value)
    assert controller.volumes.asked == []
    assert controller.said == []


@pytest.mark.parametrize("name", LITERAL)
async def test_names_are_taken_literally(controller: Controller, name: str) -> None:
    """Promise 21."""
    await controller.create(name=name)

    assert controller.volumes.asked == [(name, f"/{name}", GIB, 0)]


async def test_a_missing_secret_is_told_by_its_parameter(controller: Controller) -> None:
    """What an operator has to write into the StorageClass."""
    with pytest.raises(InvalidRequest, match=r"csi\.storage\.k8s\.io/provisioner-secret-name"):
        await controller.create(secrets={})


async def test_reading_and_writing_can_be_asked_together(controller: Controller) -> None:
    """A claim with several modes needs one that writes."""
    await controller.create(volume_capabilities=[capability(Mode.MULTI_NODE_READER_ONLY), capability()])

    assert controller.volumes.asked


async def test_deleting_is_told_once(controller: Controller) -> None:
    """An unknown volume is a success without an event."""
    for volume_id in ("v", "unknown"):
        await controller.service.delete_volume(DeleteVolumeRequest(volume_id=volume_id, secrets=SECRETS))

    assert controller.said == [(VolumeDeleted(), "v")]


async def test_a_static_volume_needs_no_secrets_to_stay(controller: Controller) -> None:
    """Nothing is to be deleted."""
    await controller.service.delete_volume(DeleteVolumeRequest(volume_id="data"))

    assert controller.volumes.asked == []


async def test_a_volume_of_ours_is_not_called_deleted_without_secrets(controller: Controller) -> None:
    """Nothing is said that is not so."""
    with pytest.raises(InvalidRequest, match="provisioner-secret-name"):
        await controller.service.delete_volume(DeleteVolumeRequest(volume_id=PVC))


@pytest.mark.parametrize("volume_id", ["", "a\0b", "x" * 300, 7])
async def test_an_id_that_is_none_is_refused(controller: Controller, volume_id: Any) -> None:
    """In every call that takes one."""
    service, given = controller.service, {"volume_id": volume_id, "secrets": SECRETS}
    for call in (
        service.delete_volume(DeleteVolumeRequest(**given)),
        service.controller_expand_volume(ControllerExpandVolumeRequest(**given)),
        service.validate_volume_capabilities(ValidateVolumeCapabilitiesRequest(**given)),
    ):
        with pytest.raises(InvalidRequest, match="volume_id"):
            await call


async def test_expanding_needs_no_node(controller: Controller) -> None:
    """The quota is the whole of it."""
    request = ControllerExpandVolumeRequest(
        volume_id="v", secrets=SECRETS, capacity_range=CapacityRange(required_bytes=GIB), volume_capability=capability()
    )
    reply = await controller.service.controller_expand_volume(request)

    assert (reply.capacity_bytes, reply.node_expansion_required) == (GIB, False)
    assert controller.said == [(VolumeExpanded(capacity_bytes=GIB), "v")]


@pytest.mark.parametrize(
    "change",
    [{"capacity_range": None}, {"capacity_range": CapacityRange()}, {"secrets": {}}, {"volume_capability": BLOCK}],
)
async def test_an_expansion_to_nothing_is_refused(controller: Controller, change: dict[str, Any]) -> None:
    """CSI: capacity_range is required."""
    request = ControllerExpandVolumeRequest(
        volume_id="v", secrets=SECRETS, capacity_range=CapacityRange(required_bytes=GIB)
    )
    with pytest.raises(InvalidRequest):
        await controller.service.controller_expand_volume(replace(request, **change))

    assert controller.volumes.asked == []


def validate(**changes: Any) -> ValidateVolumeCapabilitiesRequest:
    return replace(
        ValidateVolumeCapabilitiesRequest(volume_id="v", volume_capabilities=[capability()], secrets=SECRETS), **changes
    )


async def test_what_works_is_confirmed_as_it_was_asked(controller: Controller) -> None:
    """CSI: the confirmed fields are those of the request."""
    request = validate(volume_context={"subPath": "v"}, parameters={"a": "b"})
    reply = await controller.service.validate_volume_capabilities(request)

    assert reply.confirmed
    assert reply.confirmed.volume_capabilities == request.volume_capabilities
    assert (reply.confirmed.volume_context, reply.confirmed.parameters) == ({"subPath": "v"}, {"a": "b"})


async def test_what_does_not_work_is_told_and_not_confirmed(controller: Controller) -> None:
    """CSI: an answer without `confirmed`, not an error."""
    reply = await controller.service.validate_volume_capabilities(validate(volume_capabilities=[capability(), BLOCK]))

    assert reply.confirmed is None
    assert "block" in reply.message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"volume_id": "unknown"}, NotFound),
        ({"volume_capabilities": []}, InvalidRequest),
        ({"secrets": {}}, InvalidRequest),
    ],
)
async def test_what_can_not_be_validated_is_an_error(
    controller: Controller, change: dict[str, Any], word: type[Exception]
) -> None:
    """CSI: an unknown volume is NOT_FOUND; without secrets nobody can look."""
    with pytest.raises(word):
        await controller.service.validate_volume_capabilities(validate(**change))


async def test_capabilities_say_exactly_what_works(controller: Controller) -> None:
    """No more, no less."""
    reply = await controller.service.controller_get_capabilities(ControllerGetCapabilitiesRequest())

    names = [offered.rpc.type.name for offered in reply.capabilities if offered.rpc]
    assert names == ["CREATE_DELETE_VOLUME", "EXPAND_VOLUME", "SINGLE_NODE_MULTI_WRITER"]


@pytest.mark.parametrize(
    ("volume_id", "expected"),
    [(PVC, True), (f"{PVC}\n", False), (f"x{PVC}", False), (f"{PVC}/..", False), ("pvc-1", False), ("", False)],
)
def test_ids_of_the_earlier_driver(volume_id: str, *, expected: bool) -> None:
    """Behaviour.md 1.5, but the whole id."""
    assert is_of_earlier_driver(volume_id) is expected
