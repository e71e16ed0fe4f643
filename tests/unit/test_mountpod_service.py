"""What mountpod answers on the bus."""

import pytest

from services.mountpod.node import NodeService
from services.mountpod.reconcile import Reconcile
from services.mountpod.service import MountpodService
from shared import settings
from shared.api.juicefs.v1 import EnsureRequest, RestartRequest
from shared.errors import InvalidRequest, NotFound
from tests.fakes.bus import MemoryBus
from tests.fakes.runtime import FakeRuntime

CREDENTIALS = "0" * 64


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def service(runtime: FakeRuntime) -> MountpodService:
    bus = MemoryBus()
    reconcile = Reconcile(runtime=runtime, node=NodeService(bus=bus, node="n1"))
    return MountpodService(runtime=runtime, reconcile=reconcile, bus=bus, node="n1")


async def test_the_answer_names_the_client_of_the_request(service: MountpodService, runtime: FakeRuntime) -> None:
    """Names are functions of their inputs: the node can compute the same from the same."""
    reply = await service.ensure(
        EnsureRequest(
            volume_id="pvc-1",
            volume_context={"subPath": "pvc-1", "mountOptions": "cache-size=1"},
            mount_options=["ro"],
            credentials=CREDENTIALS,
        )
    )
    wanted = settings.parse(
        volume_id="pvc-1",
        context={"subPath": "pvc-1"},
        mount_options=["cache-size=1", "ro"],
        credentials=CREDENTIALS,
    )
    assert (reply.mount, reply.settings_digest, runtime.ensured) == (wanted.mount_name, wanted.digest, [wanted])


@pytest.mark.parametrize(
    "request_",
    [
        EnsureRequest(credentials=CREDENTIALS),
        EnsureRequest(volume_id="v", mount_options=["update-fstab"], credentials=CREDENTIALS),
        EnsureRequest(volume_id="v", volume_context={"subPath": "../other"}, credentials=CREDENTIALS),
    ],
)
async def test_bad_input_starts_nothing(
    service: MountpodService, runtime: FakeRuntime, request_: EnsureRequest
) -> None:
    """Refused with INVALID_ARGUMENT, and no effect."""
    with pytest.raises(InvalidRequest):
        await service.ensure(request_)
    assert runtime.ensured == []


async def test_a_restart_goes_to_the_runtime(service: MountpodService) -> None:
    """Its word is the answer."""
    with pytest.raises(NotFound, match="v-abcdef"):
        await service.restart(RestartRequest(mount="v-abcdef"))
