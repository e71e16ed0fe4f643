"""What the driver needs is away for a minute while pods come and go (promises 7 and 8). Nothing is lost."""

import asyncio
import time
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from demo.orchestrator import Orchestrator
from tests.e2e import driver, machine
from tests.e2e.case import Case
from tests.e2e.cluster import kubectl, until
from tests.e2e.objects import FRUGAL

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]
AWAY = 60.0  # seconds


async def test_without_nats(case: Case) -> None:
    """Warm volumes come and go; a cold one says what is missing, and starts afterwards."""
    volume = await case.dynamic()
    await case.claim("cold")
    await case.writer("held", "writer")
    async with driver.without_bus(case.cluster):
        await case.pod("late", claims={"data": "cold"})
        rounds = await _come_and_go(case)
        await case.described("pod", "late", "FailedMount", "NATS")
    await case.ready("late", within=180)
    report = await case.more(5, "writer")

    case.figures.append(f"{rounds} pods meanwhile, longest stall {report['longest_ms']} ms")
    await case.referenced(volume, 1)


async def _come_and_go(case: Case) -> int:
    """Pods of a warm volume, one after another."""
    rounds, end = 0, time.monotonic() + AWAY
    while time.monotonic() < end:
        await case.running(within=20)
        await case.delete()
        rounds += 1
    return rounds


async def _bind_and_unbind(kubelet: Orchestrator, volume: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    await kubelet.publish(volume, target, context=FRUGAL)
    assert target.is_mount()
    await kubelet.unpublish(volume, target)


async def _says_why(kubelet: Orchestrator, volume: str, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(GRPCError) as refused:
        await kubelet.publish(volume, target, context={**FRUGAL, "subPath": "cold"})
    assert refused.value.status is Status.UNAVAILABLE
    assert "API server" in str(refused.value.message), refused.value.message
    return True


@pytest.mark.machine
async def test_without_api_server(case: Case) -> None:
    """Kubelet can't learn of pods then; its calls for a warm volume succeed, and a cold one says what is missing."""
    volume, unused = await case.static(), await case.static("cold", {"subPath": "cold"})
    await case.writer("held", "writer")
    async with machine.kubelet() as kubelet, machine.target(volume) as warm, machine.target(unused) as cold:
        kubelet.secrets = case.secrets()
        async with machine.stopped(case.cluster, "kube-apiserver"):
            end = time.monotonic() + AWAY
            await until(lambda: _says_why(kubelet, unused, cold), what="the API server is named")
            while time.monotonic() < end:
                await _bind_and_unbind(kubelet, volume, warm)
                assert not await case.cluster.mounts(str(warm))
                await asyncio.sleep(1)
    report = await case.more(5, "writer")

    case.figures.append(f"longest stall {report['longest_ms']} ms")
    await driver.ready(case.cluster, driver.NODE, driver.MOUNTPOD, driver.CONTROLLER, within=90)
    await case.running()
    await case.referenced(volume, 2)


async def test_node_cordoned(case: Case) -> None:
    """New pods say so and wait; those that run keep their volume, even when its mount pod has to start again."""
    volume = await case.dynamic()
    await case.writer("anew", "writer")
    before = (await case.cluster.mount_pod(volume))["metadata"]
    node = (await case.pods("writer"))[0]["spec"]["nodeName"]
    await kubectl("cordon", node)
    try:
        await case.pod("late")
        await case.described("pod", "late", "FailedScheduling", "unschedulable")
        await kubectl("delete", "pod", before["name"], "--namespace", "kube-system", "--wait=false")
        await case.cluster.mount_pod(volume, but=before["uid"])
        await case.more(10, "writer")
    finally:
        await kubectl("uncordon", node)

    await case.ready("late", within=90)


@pytest.mark.machine
async def test_all_services_killed(case: Case) -> None:
    """Node, mountpod and controller at once: no call of a workload fails, and the next pod starts."""
    volume = await case.dynamic()
    await case.writer("held", "writer")
    for app in (driver.NODE, driver.MOUNTPOD, driver.CONTROLLER):
        await driver.killed(case.cluster, app)

    await case.running(within=120)

    await case.more(10, "writer")
    await case.referenced(volume, 2)
    await until(lambda: _are_ready(case), what="all services ready")


async def _are_ready(case: Case) -> bool:
    await driver.ready(case.cluster, driver.NODE, driver.MOUNTPOD, driver.CONTROLLER)
    return True
