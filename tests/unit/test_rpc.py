import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from shared import log
from shared.api.csi.v1 import CreateVolumeRequest, CreateVolumeResponse
from shared.errors import BY_NAME, DriverError, NotReady
from shared.rpc import new_request_id
from tests.unit.csi_server import Create, created, serving

SECRET = "hunter2"
REQUEST = CreateVolumeRequest(name="v1", secrets={"metaurl": SECRET})


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield lines


def raises(error: Exception) -> Create:
    async def create(_: CreateVolumeRequest) -> CreateVolumeResponse:
        raise error

    return create


@pytest.mark.parametrize("word", BY_NAME.values())
async def test_an_error_becomes_its_status(word: type[DriverError]) -> None:
    """The driver's word decides; the text goes along."""
    async with serving(raises(word("größer: see the log"))) as served:
        with pytest.raises(GRPCError) as caught:
            await served.controller.create_volume(REQUEST)

    assert (caught.value.status.name, caught.value.message) == (word.status, "größer: see the log")


async def test_an_unexpected_error_shows_only_its_type(lines: list[Any]) -> None:
    """Its text may quote a secret: neither the caller nor the log gets it; the log has the places, once."""
    async with serving(raises(ValueError(SECRET))) as served:
        with pytest.raises(GRPCError, match=r"unexpected ValueError: .* request ") as caught:
            await served.controller.create_volume(REQUEST)

    assert caught.value.status is Status.INTERNAL
    (failure,) = [line for line in lines if "exc_info" in line]
    assert "tests/unit/test_rpc.py" in log.places(failure["exc_info"])[-2]
    assert SECRET not in str(log.places(failure["exc_info"])) + str(caught.value)


async def test_a_call_is_one_line(lines: list[Any]) -> None:
    """With its name, volume, id, code and duration, and nothing of the message else."""
    async with serving() as served:
        await served.controller.create_volume(REQUEST, metadata={"x-request-id": "my-id"})

    (line,) = [line for line in lines if "rpc" in line]
    seconds = line.pop("seconds")
    assert 0 <= seconds < 5
    facts = {"rpc": "CreateVolume", "volume": "v1", "request_id": "my-id", "code": "OK"}
    assert line == {**facts, "event": "call answered", "log_level": "info"}


def test_a_strange_request_id_is_replaced() -> None:
    """What a caller sends as an id goes to logs and headers: only a plain word may."""
    assert new_request_id("kubelet-7") == "kubelet-7"
    assert all(len(new_request_id(offered)) == 16 for offered in ("", "a b", "x" * 65, "a\nb"))


async def test_the_request_id_is_known_within_the_call() -> None:
    """What the call says on the bus carries it."""
    seen: list[str] = []

    async def create(request: CreateVolumeRequest) -> CreateVolumeResponse:
        seen.append(log.request_id.get())
        return await created(request)

    async with serving(create) as served:
        await served.controller.create_volume(REQUEST, metadata={"x-request-id": "my-id"})

    assert seen == ["my-id"]


async def test_the_callers_deadline_ends_the_call() -> None:
    """Work that nobody waits for is cancelled, and counted as late."""
    ended = asyncio.Event()

    async def create(_: CreateVolumeRequest) -> CreateVolumeResponse:
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        finally:
            ended.set()

    async with serving(create) as served:
        with pytest.raises((GRPCError, TimeoutError)):
            await served.controller.create_volume(REQUEST, timeout=0.3)
        await asyncio.wait_for(ended.wait(), 5)
        labels = {"method": "CreateVolume", "code": "DEADLINE_EXCEEDED"}
        assert served.metrics.registry.get_sample_value("juicefs_csi_rpc_seconds_count", labels) == 1


async def test_calls_are_measured() -> None:
    """By method and code."""
    async with serving() as served:
        await served.controller.create_volume(REQUEST)
        await served.controller.create_volume(REQUEST)
        labels = {"method": "CreateVolume", "code": "OK"}
        assert served.metrics.registry.get_sample_value("juicefs_csi_rpc_seconds_count", labels) == 2


async def test_a_message_that_cannot_be_read() -> None:
    """Is the caller's fault, and the service goes on."""

    class Broken(CreateVolumeRequest):
        def __bytes__(self) -> bytes:
            return b"\x0a\x02\xff\xff"

    async with serving() as served:
        with pytest.raises(GRPCError) as caught:
            await served.controller.create_volume(Broken())
        await served.controller.create_volume(REQUEST)

    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_an_error_that_cannot_be_written_as_it_is() -> None:
    """Text that is no UTF-8, and more of it than a header takes, still reaches the caller."""
    async with serving(raises(NotReady("caf\udce9 " + "x" * 100_000))) as served:
        with pytest.raises(GRPCError) as caught:
            await served.controller.create_volume(REQUEST)

    assert caught.value.status is Status.UNAVAILABLE
    assert str(caught.value.message).startswith("caf? xxx")
