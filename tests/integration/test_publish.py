"""The story: a volume at targets, shared, told truly, and gone."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status

from demo.orchestrator import Mode, capability
from shared import mounter
from shared.api.csi.v1 import (
    NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest,
)
from tests.integration.local import Local, local, status, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine() -> AsyncIterator[Local]:
    async with local("nats", "mountpod", "node") as machine:
        yield machine


async def test_two_targets_share_one_client(machine: Local) -> None:
    """Architecture 1: one client per volume and node; what one target writes the other reads."""
    one, two = machine.target("a", "shared"), machine.target("b", "shared")
    await asyncio.gather(*(machine.csi.publish("shared", target) for target in (one, two)))
    await asyncio.to_thread((one / "file").write_text, "words")
    assert await asyncio.to_thread((two / "file").read_text) == "words"
    assert machine.layers(one)[0].device == machine.layers(two)[0].device
    assert len(machine.driver.clients(machine.name(one))) == 2  # a supervisor and its child


async def test_publish_twice_is_one_bind(machine: Local) -> None:
    """CSI spec: NodePublishVolume is idempotent."""
    target = machine.target("a", "twice")
    await machine.csi.publish("twice", target)
    await machine.csi.publish("twice", target)
    assert len(machine.layers(target)) == 1


async def test_a_read_only_target_refuses_writes_beside_a_writable_one(machine: Local) -> None:
    """The access is the target's, the client is shared."""
    one, two = machine.target("a", "access"), machine.target("b", "access")
    await machine.csi.publish("access", one)
    await machine.csi.publish("access", two, read_only=True)
    await asyncio.to_thread((one / "file").touch)
    with pytest.raises(OSError, match="Read-only") as refusal:
        await asyncio.to_thread((two / "other").touch)
    assert refusal.value.errno == errno.EROFS
    assert machine.layers(one)[0].device == machine.layers(two)[0].device


@pytest.mark.parametrize("mode", [Mode.MULTI_NODE_READER_ONLY, Mode.SINGLE_NODE_READER_ONLY])
async def test_a_volume_for_readers_cannot_be_written(machine: Local, mode: Mode) -> None:
    """Behaviour.md 1.10: its client is read-only, whatever the target says."""
    target = machine.target("a", f"readers-{mode.value}")
    await machine.csi.publish(f"readers-{mode.value}", target, mode=mode)
    with pytest.raises(OSError, match="Read-only"):
        await asyncio.to_thread((target / "file").touch)


async def test_another_access_at_the_same_target_already_exists(machine: Local) -> None:
    """CSI spec: incompatible with the one published there."""
    target = machine.target("a", "incompatible")
    await machine.csi.publish("incompatible", target)
    assert await status(machine.csi.publish("incompatible", target, read_only=True)) is Status.ALREADY_EXISTS
    assert await status(machine.csi.publish("another", target)) is Status.ALREADY_EXISTS
    assert len(machine.layers(target)) == 1


async def test_unpublish_ends_the_client_and_leaves_nothing(machine: Local) -> None:
    """Promise 2 and 6: nothing mounted, no directory, no process, no file."""
    target = machine.target("a", "gone")
    await machine.csi.publish("gone", target)
    name = machine.name(target)
    await machine.csi.unpublish("gone", target)
    assert not target.exists()
    await until(lambda: not machine.driver.clients(name) and name not in machine.driver.layout.names())
    assert not (machine.driver.layout.mount_root / name).exists()


async def test_unpublish_of_what_is_not_there_is_fine(machine: Local) -> None:
    """Promise 2: missing, never mounted, and twice."""
    target = machine.target("a", "nothing")
    await machine.csi.unpublish("nothing", target)
    target.mkdir(parents=True)
    await machine.csi.unpublish("nothing", target)
    assert not target.exists()


async def test_unpublish_takes_every_layer_off(machine: Local) -> None:
    """Promise 2: stacked mounts, also foreign ones."""
    target = machine.target("a", "stacked")
    await machine.csi.publish("stacked", target)
    for _ in range(3):
        mounter._mount("tmpfs", str(target), 0, fs_type="tmpfs")
    await machine.csi.unpublish("stacked", target)
    assert machine.layers(target) == []
    assert not target.exists()


async def test_a_foreign_mount_is_not_covered(machine: Local) -> None:
    """Promise 1: never OK over something else."""
    target = machine.target("a", "foreign")
    target.mkdir(parents=True)
    mounter._mount("tmpfs", str(target), 0, fs_type="tmpfs")
    assert await status(machine.csi.publish("foreign", target)) is Status.FAILED_PRECONDITION
    mounter.unmount(target)


async def test_files_in_a_bare_target_survive(machine: Local) -> None:
    """Promise 4: rmdir only."""
    target = machine.target("a", "bare")
    target.mkdir(parents=True)
    (target / "precious").touch()
    await machine.csi.unpublish("bare", target)
    assert (target / "precious").exists()


async def test_stats_are_the_file_systems(machine: Local) -> None:
    """CSI spec, NodeGetVolumeStats: bytes and inodes, and that the volume is well."""
    target = machine.target("a", "stats")
    await machine.csi.publish("stats", target)
    request = NodeGetVolumeStatsRequest(volume_id="stats", volume_path=str(target))
    reply = await machine.csi.node.node_get_volume_stats(request)
    assert [usage.total > 0 for usage in reply.usage] == [True, True]
    assert reply.volume_condition is not None
    assert not reply.volume_condition.abnormal


async def test_stats_of_a_path_without_volume_are_not_found(machine: Local) -> None:
    """CSI spec, NodeGetVolumeStats."""
    target = machine.target("a", "nowhere")
    request = NodeGetVolumeStatsRequest(volume_id="nowhere", volume_path=str(target))
    assert await status(machine.csi.node.node_get_volume_stats(request)) is Status.NOT_FOUND


HOSTILE = ["", "..", "../x", "a\x00b", "a\nb", "x" * 300, "relative", "/etc", "/"]


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
async def test_a_hostile_target_is_refused(machine: Local, path: str) -> None:
    """Promise 21: with a status, no effect, and the service goes on."""
    published = await status(machine.csi.publish("hostile", Path(path) if path else Path("//")))
    request = NodeUnpublishVolumeRequest(volume_id="hostile", target_path=path)
    assert published is Status.INVALID_ARGUMENT
    assert await status(machine.csi.node.node_unpublish_volume(request)) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("volume", ["", "a\x00b", "a\nb", "x" * 129], ids=repr)
async def test_a_hostile_volume_id_is_refused(machine: Local, volume: str) -> None:
    """Promise 21."""
    assert await status(machine.csi.publish(volume, machine.target("a", "x"))) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("volume", ["../../etc", "a/b", "$(touch /tmp/owned)", "`id`", "a'b\"c", "a b"], ids=repr)
async def test_an_odd_volume_id_is_taken_literally(machine: Local, volume: str) -> None:
    """Promise 21: used as it is, never executed, never a path."""
    target = machine.target("odd", "literally")
    await machine.csi.publish(volume, target)
    assert machine.layers(target)[0].is_juicefs
    await machine.csi.unpublish(volume, target)


@pytest.mark.parametrize("odd", ["a#b", "a\u2028b", "a\u0085b", "a b\\c", "$(id)"], ids=ascii)
async def test_an_odd_target_is_taken_literally(machine: Local, odd: str) -> None:
    """Whatever the kernel escapes in its mount table, and whatever it does not."""
    target = machine.driver.pods / odd / "mount"
    await machine.csi.publish("odd", target)
    await machine.csi.publish("odd", target)
    assert len(machine.layers(target)) == 1
    await machine.csi.unpublish("odd", target)
    assert not target.exists()


async def test_a_target_inside_a_volume_is_refused(machine: Local) -> None:
    """It would be looked up by a client, and made in a tenant's volume."""
    target = machine.target("a", "outer")
    await machine.csi.publish("outer", target)
    assert await status(machine.csi.publish("outer", target / "x")) is Status.INVALID_ARGUMENT
    assert await status(machine.csi.unpublish("outer", target / "x")) is Status.INVALID_ARGUMENT
    assert not await asyncio.to_thread((target / "x").exists)


async def test_a_symlink_in_the_target_is_refused(machine: Local, tmp_path: Path) -> None:
    """Promise 21: target paths with a symlink in them."""
    (machine.driver.pods / "link").symlink_to(tmp_path)
    assert await status(machine.csi.publish("link", machine.driver.pods / "link/x")) is Status.INVALID_ARGUMENT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"volume_capability": None},
        {"secrets": {}},
        {"secrets": {"name": "demo"}},
        {"volume_context": {"subPath": "../.."}},
        {"volume_context": {"mountOptions": "a=b=c"}},
        {"volume_capability": capability(Mode.UNKNOWN)},
    ],
    ids=repr,
)
async def test_a_malformed_publish_is_refused(machine: Local, change: dict[str, object]) -> None:
    """CSI spec: INVALID_ARGUMENT, before anything is done."""
    target = machine.target("a", "malformed")
    fields = {
        "volume_id": "malformed",
        "target_path": str(target),
        "volume_capability": capability(),
        "secrets": machine.driver.secrets,
    } | change
    request = NodePublishVolumeRequest(**fields)  # type: ignore[arg-type]
    assert await status(machine.csi.node.node_publish_volume(request)) is Status.INVALID_ARGUMENT
    assert not target.exists()
