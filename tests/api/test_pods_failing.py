"""Mount pods that do not come up, or that nobody wants: who hears of it, and what becomes of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mountpod import reconcile, waiting
from services.mountpod.pods import Pods
from shared.errors import CommandFailed, DriverError
from shared.kubernetes import Kubernetes
from shared.pod_patch import Configuration
from tests.api.mounting import Object, Stage, container, staged
from tests.waiting import until

SHORT: Object = {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Stage]:
    async with staged(api) as found:
        yield found


async def test_a_client_that_ends_before_its_mount(stage: Stage) -> None:
    """Promise 10: a class, the reason, no pod left, and no other before the next try is due."""
    async with stage.leading():
        await stage.ensure()
        ended = {"exitCode": 1, "reason": "Error", "message": "no such bucket"}
        await stage.kubelet_says(**container(terminated=ended))
        await until(stage.failures)
        await stage.until_pods(0)
        with pytest.raises(CommandFailed, match="no such bucket"):
            await stage.ensure()
        assert not await stage.pods()
        await _tried_again(stage)
        assert await stage.until_pods(1)


async def test_who_waits_hears_why(stage: Stage) -> None:
    """An Event of the workload that waits for it."""
    async with stage.leading():
        await stage.ensure("p7")
        await stage.kubelet_says(**container(restarts=1, terminated={"exitCode": 2, "reason": "OOMKilled"}))
        await until(stage.failures)
        await _until_said(stage, "MountFailed", "p7: the JuiceFS client of")
    assert stage.failures()[0].reason == "OUT_OF_MEMORY"


@pytest.mark.parametrize("is_used", [False, True], ids=["new", "used"])
async def test_a_node_that_is_short_is_asked_for_less(stage: Stage, *, is_used: bool) -> None:
    """behaviour.md 4.8, e2e pod_resource_err: the client runs all the same, with its limits."""
    async with stage.leading():
        if is_used:
            await stage.serve()
        else:
            await stage.ensure()
        await stage.kubelet_says(**SHORT)
        pod = await _successor(stage)
    assert _resources(pod) == {"limits": {"cpu": "5", "memory": "5Gi"}, "requests": {"cpu": "0", "memory": "0"}}


async def test_what_the_scheduler_finds_no_room_for(stage: Stage) -> None:
    """The same by a condition."""
    async with stage.leading():
        await stage.ensure()
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        words = "0/1 nodes are available: 1 Insufficient memory."
        await stage.kubelet_says(phase="Pending", conditions=[{**condition, "message": words}])
        pod = await _successor(stage)
    assert _resources(pod)["requests"] == {"cpu": "0", "memory": "0"}


async def test_a_node_that_has_not_even_that(stage: Stage) -> None:
    """Promise 10: no second try at once; the missing resource is named."""
    async with stage.leading():
        await stage.ensure()
        await stage.kubelet_says(**SHORT)
        await _successor(stage)
        await stage.kubelet_says(**SHORT)
        await until(stage.failures)
        with pytest.raises(CommandFailed, match="enough resource: cpu") as failed:
            await stage.ensure()
    assert failed.value.reason == "UNSCHEDULABLE"


async def test_requests_are_kept_if_the_configuration_says_so(stage: Stage) -> None:
    """enableAutoRemoveRequestResources: false."""
    async with stage.leading():
        stage.cluster.planner.configuration = Configuration(drops_requests=False)
        await stage.ensure()
        await stage.kubelet_says(**SHORT)
        await until(stage.failures)
    assert stage.failures()[0].reason == "UNSCHEDULABLE"


@pytest.mark.parametrize(
    "status",
    [SHORT, {"phase": "Failed", "reason": "NodeShutdown", "message": "the node goes down"}, {"phase": "Failed"}],
    ids=["short", "shutdown", "failed"],
)
async def test_a_node_that_takes_no_pod_is_not_flooded(stage: Stage, status: Object) -> None:
    """Promise 10 holds for what is brought back, too: kubelet refuses a pod in no time."""
    async with stage.leading():
        await stage.serve()
        made = await _refused(stage, status, seconds=3.0)
    assert 2 <= len(made) <= 5
    assert any("MountFailed" in kind or "ClientExited" in kind for kind in stage.bus.kinds())


async def test_what_nobody_waits_for_goes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish that was given up asks no more; nothing is kept for it."""
    for name in ("_UNWANTED", "_UNWANTED_START"):
        monkeypatch.setattr(waiting, name, 0.3)
    monkeypatch.setattr(reconcile, "_PERIOD", 0.1)
    async with stage.leading():
        await stage.ensure()
        await stage.kubelet_runs()
        await stage.until_pods(0)
        await stage.kubelet_ends()
        await until(lambda: "MountClosed" in stage.bus.kinds())


async def test_nothing_is_kept_of_what_failed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 8: nothing grows without bound, whatever is tried and given up."""
    monkeypatch.setattr("services.mountpod.failures._FORGET", -1.0)
    async with stage.leading() as pods:
        name = await stage.ensure()
        await stage.kubelet_says(**container(terminated={"exitCode": 1}))
        await until(stage.failures)
        del stage.node.devices[name]
        await until(lambda: not pods.clients())
        await until(lambda: _is_tidy(pods))
        assert not pods._failures._failures
        assert not pods._references._targets
        assert not stage.cluster.notices._mounts


async def test_what_is_waited_for_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node says that a publish expects it."""
    for name in ("_UNWANTED", "_UNWANTED_START"):
        monkeypatch.setattr(waiting, name, 0.1)
    monkeypatch.setattr(reconcile, "_PERIOD", 0.05)
    async with stage.leading():
        stage.node.expected.add(await stage.ensure())
        await stage.kubelet_runs()
        with pytest.raises(TimeoutError):
            await stage.until_pods(0, within=0.6)


def _is_tidy(pods: Pods) -> bool:
    pods.look({})
    return not pods._mounts


async def _refused(stage: Stage, status: Object, *, seconds: float) -> set[str]:
    """As a kubelet that takes no pod, for so many seconds; the UIDs of those that were made."""
    made, until_then = set[str](), time.monotonic() + seconds
    while time.monotonic() < until_then:
        for pod in await stage.pods():
            made.add(pod["metadata"]["uid"])
            if pod["status"]["phase"] != "Failed":
                await stage.kubelet_says(pod=pod, **status)
        await asyncio.sleep(0.05)
    return made


async def _tried_again(stage: Stage) -> None:
    """As kubelet and node do, until the back-off is over."""
    async with asyncio.timeout(5):
        while True:
            try:
                await stage.ensure()
            except DriverError:
                await asyncio.sleep(0.05)
            else:
                return


async def _successor(stage: Stage) -> Object:
    """The one pod that is there and has not failed."""
    async with asyncio.timeout(10):
        while True:
            pods = [pod for pod in await stage.until_pods(1) if pod["status"]["phase"] == "Pending"]
            if pods and not pods[0]["status"].get("conditions"):
                return pods[0]
            await asyncio.sleep(0.02)


async def _until_said(stage: Stage, reason: str, words: str) -> None:
    async with asyncio.timeout(10):
        while not any(words in said for said in await stage.events(reason)):
            await asyncio.sleep(0.05)


def _resources(pod: Object) -> Any:
    return pod["spec"]["containers"][0]["resources"]
