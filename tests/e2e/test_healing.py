"""Clients that die or are replaced while a workload writes (promises 17 and 18). The longest stall is printed."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from shared.errors import NotFound
from shared.kubernetes import PODS
from tests.e2e import driver, machine
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, until
from tests.e2e.objects import Object

pytestmark = [pytest.mark.machine, pytest.mark.timeout(900)]
KILLS, DELETIONS = 20, 10
REDIS = {"namespace": "juicefs-e2e", "container": "redis"}


async def test_client_killed(case: Case) -> None:
    """SIGKILL twenty times: every operation that opens anew succeeds, over one and the same kernel connection."""
    volume = await case.dynamic()
    await case.writer("anew")
    device = await _device(case, volume)
    for _ in range(KILLS):
        machine.kill(await case.cluster.mount_pod(volume))
        await until(lambda: _has_process(case, volume), what="a client again")
        await case.more(10)

    report = await case.more(10)

    case.figures.append(f"longest stall {report['longest_ms']} ms in {KILLS} kills, {report['lost_handles']} EBADF")
    assert report["lost_handles"] <= KILLS
    assert await _device(case, volume) == device


async def test_mount_pod_deleted(case: Case) -> None:
    """Deleted ten times: it comes back on the same path, by hand-over."""
    volume = await case.dynamic()
    await case.writer("anew")
    device, mount = await _device(case, volume), await case.mount_path(volume)
    for _ in range(DELETIONS):
        before = (await case.cluster.mount_pod(volume))["metadata"]
        await case.cluster.api.delete(PODS, before["name"], namespace=SYSTEM, uid=before["uid"])
        await case.cluster.mount_pod(volume, but=before["uid"])
        await case.more(10)

    report = await case.more(10)

    case.figures.append(f"longest stall {report['longest_ms']} ms in {DELETIONS} deletions")
    assert (await _device(case, volume), await case.mount_path(volume)) == (device, mount)


async def test_secret_deleted_while_mounted(case: Case) -> None:
    """Users work on without their Secret; a mount pod that is deleted meanwhile comes back when it does."""
    volume = await case.static()
    await case.writer("anew")
    await case.remove_secret()
    before = (await case.cluster.mount_pod(volume))["metadata"]
    await case.more(10)
    await case.pod("second")
    await case.described("pod", "second", "secret", "not found")
    await case.cluster.api.delete(PODS, before["name"], namespace=SYSTEM)
    await until(lambda: _is_other(case, volume, before["uid"]), what="the mount pod deleted")

    await case.secret()

    await case.cluster.mount_pod(volume, but=before["uid"], within=90)
    await case.more(10)
    await case.ready("second", within=150)


@pytest.mark.alone
async def test_client_killed_while_it_waits_for_itself(case: Case) -> None:
    """One of its processes asks the mount when all are killed, and can't end unanswered: another client answers it."""
    volume = await case.dynamic()
    await case.writer("anew")
    device = await _device(case, volume)
    client = await case.cluster.mount_pod(volume)
    name = client["metadata"]["name"]
    path = f"/jfs/{client['metadata']['annotations']['juicefs.com/mount']}/not-there"
    await case.cluster.exec("deployment/redis", "redis-cli", "client", "pause", "3000", **REDIS)
    asking = asyncio.create_task(case.cluster.exec(name, "stat", path))
    await until(lambda: _waits_for_fuse(client), within=3, what="it waits for its own mount")
    machine.kill(client)

    await until(partial(_is_other, case, volume, client["metadata"]["uid"]), what="the stuck pod gone")
    report = await case.more(10)

    await asyncio.wait({asking})
    asking.exception()
    case.figures.append(f"longest stall {report['longest_ms']} ms")
    assert await _device(case, volume) == device


@pytest.mark.alone
async def test_upgrade(case: Case) -> None:
    """Another image under a writer with an open handle: no call fails."""
    volume = await case.dynamic()
    await case.writer("held")
    device = await _device(case, volume)
    patch = {"pvcSelector": {"matchStorageClassName": case.namespace}, "ceMountImage": "juicefs-csi-mount:other"}
    async with driver.configured(case.cluster, patch):
        await driver.upgrade(volume)
        await until(lambda: _has_image(case, volume, "juicefs-csi-mount:other"), what="a client of the other image")
        report = await case.more(20)

    case.figures.append(f"longest stall {report['longest_ms']} ms")
    assert await _device(case, volume) == device


@pytest.mark.alone
async def test_node_service_and_client_killed(case: Case) -> None:
    """Nobody holds the descriptor, three times: the pod sees the new mount, and mounts don't pile up at its target."""
    volume = await case.dynamic()
    await case.running()
    await case.write("/data/out.txt", "written")
    target = await case.target()
    for _ in range(3):
        device, client = await _device(case, volume), await case.cluster.mount_pod(volume)
        await driver.killed(case.cluster, driver.NODE)
        machine.kill(client)
        await until(partial(_is_other_device, case, volume, device), within=120, what="a new mount")
        await until(lambda: _reads(case), within=5, what="the target works again")
        await case.write("/data/more", "written")
        # The living one, and beneath it the first dead one, through which containers hear of others.
        assert len(await case.cluster.mounts(target)) <= 2


async def _waits_for_fuse(pod: Object) -> bool:
    waits = []
    for pid in machine.processes(pod):
        with suppress(OSError):
            waits.append(Path(f"/proc/{pid}/wchan").read_text())
    return "request_wait_answer" in waits


async def _device(case: Case, volume: str) -> str:
    devices = {entry.device for entry in await case.cluster.mounts(f"/volume/{volume}-")}
    assert len(devices) == 1, devices
    return devices.pop()


async def _is_other_device(case: Case, volume: str, device: str) -> bool:
    return {entry.device for entry in await case.cluster.mounts(f"/volume/{volume}-")} - {device} != set()


async def _has_process(case: Case, volume: str) -> bool:
    try:
        pod = await case.cluster.mount_pod(volume)
    except NotFound:
        return False
    return bool(machine.processes(pod))


async def _is_other(case: Case, volume: str, uid: str) -> bool:
    return uid not in [pod["metadata"]["uid"] for pod in await case.cluster.mount_pods(volume)]


async def _has_image(case: Case, volume: str, image: str) -> bool:
    pod = await case.cluster.mount_pod(volume)
    return bool(pod["spec"]["containers"][0]["image"] == image)


async def _reads(case: Case) -> bool:
    return await case.exec("cat", "/data/out.txt") == "written"
