"""What workloads and claims hear in Kubernetes Events of the clients that they wait for, or use."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.mountpod import notices, waiting
from shared.api.juicefs.v1 import DescriptorTaken, TargetBound, TargetRebound, TargetUnbound
from shared.errors import CommandFailed, NotReady
from shared.kubernetes import CLAIMS, EVENTS, PERSISTENT_VOLUMES, PODS, Kubernetes
from shared.pod_patch import Configuration
from tests.api.mounting import Stage, container, staged
from tests.waiting import until


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Stage]:
    async with staged(api) as found:
        yield found


async def test_a_start_is_told_when_it_takes_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and with the seconds when it serves."""
    monkeypatch.setattr(notices, "_LONG", -1.0)
    async with stage.leading():
        name = await stage.ensure()
        for _ in range(2):
            await stage.ensure()
        await _until(stage, "MountStarting", "p1: ")
        _bound(stage, name, "p1")
        await _until(stage, "MountReady", "p1: ")
    assert len(await stage.events("MountStarting")) == 1


async def test_a_quick_start_is_not_worth_an_event(stage: Stage) -> None:
    """Only that it serves."""
    async with stage.leading():
        _bound(stage, await stage.ensure(), "p1")
        await _until(stage, "MountReady", "p1: ")
    assert not await stage.events("MountStarting")


async def test_a_failure_is_told_to_all_it_concerns(stage: Stage) -> None:
    """Issue 4: the workloads that wait, and the claim; with the class, and no secret."""
    await _claim(stage)
    async with stage.leading():
        for pod in ("p1", "p2"):
            await stage.ensure(pod)
        ended = {"exitCode": 1, "message": "dial redis://:marker-1@redis/1: connection refused"}
        await stage.kubelet_says(**container(terminated=ended))
        for who in ("p1", "p2", "data"):
            await _until(stage, "MountFailed", f"{who}: ")
    events = (await stage.api.list(EVENTS, namespace=stage.name))["items"]
    assert all(event["type"] == "Warning" for event in events if event["reason"] == "MountFailed")
    assert "marker-1" not in str(events)


@pytest.mark.parametrize("later", ["nothing", "better"])
async def test_what_kubelet_complains_of_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch, later: str) -> None:
    """A pod that hangs in ContainerCreating: its last event says why, its status does not. It may still come up."""
    monkeypatch.setattr(waiting, "_PATIENCE", 0.1)
    monkeypatch.setattr(waiting, "_LATE", 0.1)
    async with stage.leading():
        await stage.ensure()
        (pod,) = await stage.pods()
        await stage.kubelet_says(**container(phase="Pending", waiting={"reason": "ContainerCreating"}))
        await _kubelet_tells(stage, pod, at=1, type="Warning", reason="FailedMount", message="no secret none")
        if later == "better":
            await _kubelet_tells(stage, pod, at=2, type="Normal", reason="Pulling", message="pulling the image")
        asked = len(await _asked_for_events(stage))
        if later == "better":
            assert not await stage.events("MountFailed")
        else:
            await _until(
                stage, "MountFailed", f"POD_STARTING: mount pod {pod['metadata']['name']}: FailedMount: no secret"
            )
        assert asked
        (living,) = await stage.pods()
    assert living["metadata"]["uid"] == pod["metadata"]["uid"]
    assert not stage.failures()


async def test_users_hear_of_a_client_that_was_replaced(stage: Stage) -> None:
    """Those that are there, not those that left."""
    async with stage.leading():
        name = await stage.serve()
        for pod in ("p1", "p2"):
            _bound(stage, name, pod)
        stage.say(TargetUnbound(target=stage.target("p2")), name)
        stage.say(DescriptorTaken(), name)
        await _until(stage, "MountRecovered", "p1: ")
    assert not [said for said in await stage.events("MountRecovered") if said.startswith("p2")]


@pytest.mark.parametrize(
    ("propagation", "reason"), [("HostToContainer", "MountRecovered"), (None, "MountNotRecoverable")]
)
async def test_a_target_that_was_bound_anew(stage: Stage, propagation: str | None, reason: str) -> None:
    """Promise 17: who can't see it is told so, with what to do."""
    await _claim(stage)
    await _workload(stage, propagation)
    async with stage.leading():
        name = await stage.serve()
        _bound(stage, name, "p1")
        stage.say(TargetRebound(target=stage.target()), name)
        await _until(stage, reason, "p1: ")
    (message,) = await stage.events(reason) if propagation else (await stage.events(reason))[:1]
    assert ("mountPropagation: HostToContainer" in message) == (propagation is None)


async def test_a_claim_may_ask_for_less_and_select_by_its_labels(stage: Stage) -> None:
    """behaviour.md 3.2 and 7: its annotations, and the configuration's patches for it."""
    await _claim(stage, annotations={"juicefs/mount-memory-limit": "2Gi", "juicefs/mount-image": "evil"})
    async with stage.leading():
        settings = await _configured(stage, "{pvcSelector: {matchLabels: {app: db}}, mountOptions: [cache-size=7]}")
    assert settings["limits"] == "2Gi"
    assert settings["image"] == "mount:1"
    assert "cache-size=7" in settings["options"]


async def test_a_cache_may_be_each_volumes_own_claim(stage: Stage) -> None:
    """behaviour.md 3.4: what is to be the cache is looked for by the name that it will have."""
    cache = f"cache-{stage.handle}"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    async with stage.leading():
        patch = "{cacheDirs: [{type: PVC, name: 'cache-${VOLUME_ID}'}]}"
        with pytest.raises(NotReady, match=cache):
            await _configured(stage, patch)
        await stage.api.create(CLAIMS, {"metadata": {"name": cache}, "spec": spec}, namespace=stage.name)
        assert "cache-dir=/var/jfsCache-p0" in (await _configured(stage, patch))["options"]
    (pod,) = await stage.pods()
    assert {"claimName": cache} in [one.get("persistentVolumeClaim") for one in pod["spec"]["volumes"]]


async def test_options_of_the_configuration_win(stage: Stage) -> None:
    """behaviour.md 3.3: over the volume's own, which win over its context's; a reader gets a client that only reads."""
    await stage.remove_volume()
    await stage.make_volume(
        mountOptions=["cache-size=2", "buffer-size=99999"],
        accessModes=["ReadOnlyMany"],
        csi={"volumeAttributes": {"mountOptions": "cache-size=1,enable-xattr", "subPath": "sub"}},
    )
    async with stage.leading():
        settings = await _configured(stage, "{mountOptions: ['open-cache=3'], annotations: {juicefs-delete-delay: 5m}}")
    assert settings["options"].split(",") == [
        "buffer-size=5120", "cache-size=2", "enable-xattr", "metrics=0.0.0.0:9567", "open-cache=3", "ro", "subdir=/sub",
    ]  # fmt: skip
    assert settings["delay"] == "300s"


async def test_a_log_is_not_shown_with_its_secrets(stage: Stage) -> None:
    """Promise 22: neither in what the publish hears."""
    async with stage.leading():
        await stage.ensure()
        words = "Meta address marker-1 is not available"
        await stage.kubelet_says(**container(terminated={"exitCode": 1, "message": words}))
        await until(stage.failures)
        with pytest.raises(CommandFailed) as failed:
            await stage.ensure()
    assert "marker-1" not in f"{failed.value}{stage.failures()}"


async def _configured(stage: Stage, patch: str) -> dict[str, Any]:
    """What a pod is made of, with this patch."""
    stage.cluster.planner.configuration = Configuration.parse(f"mountPodPatch: [{patch}]")
    await stage.ensure()
    (pod,) = await stage.pods()
    client = pod["spec"]["containers"][0]
    return {
        "limits": client["resources"]["limits"]["memory"],
        "image": client["image"],
        "options": client["args"][-1],
        "delay": pod["metadata"]["annotations"].get("juicefs-delete-delay"),
    }


async def _claim(stage: Stage, **metadata: Any) -> None:
    """The volume's: it is bound to it."""
    body = {
        "metadata": {"name": "data", "labels": {"app": "db"}, **metadata},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "volumeName": stage.handle,
            "storageClassName": "",
        },
    }
    made = await stage.api.create(CLAIMS, body, namespace=stage.name)
    claim = {"name": "data", "namespace": stage.name, "uid": made["metadata"]["uid"]}
    await stage.api.patch(PERSISTENT_VOLUMES, stage.handle, {"spec": {"claimRef": claim}})


async def _workload(stage: Stage, propagation: str | None) -> None:
    mount = {"name": "v", "mountPath": "/data", **({"mountPropagation": propagation} if propagation else {})}
    body = {
        "metadata": {"name": "p1"},
        "spec": {
            "containers": [{"name": "app", "image": "app", "volumeMounts": [mount]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }
    await stage.api.create(PODS, body, namespace=stage.name)


def _bound(stage: Stage, name: str, pod: str) -> None:
    stage.say(TargetBound(target=stage.target(pod), pod_namespace=stage.name, pod_name=pod), name)


async def _until(stage: Stage, reason: str, words: str) -> None:
    async with asyncio.timeout(10):
        while not any(words in said for said in await stage.events(reason)):
            await asyncio.sleep(0.05)


async def _kubelet_tells(stage: Stage, pod: dict[str, Any], *, at: int, **event: str) -> None:
    about = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    body = {
        "metadata": {"name": f"told-{at}"},
        "involvedObject": {"kind": "Pod", **about},
        "lastTimestamp": f"2026-01-01T00:00:0{at}Z",
        **event,
    }
    await stage.api.create(EVENTS, body, namespace=stage.name)


async def _asked_for_events(stage: Stage) -> list[str]:
    """As a publish that waits, until mountpod has asked Kubernetes."""
    async with asyncio.timeout(10):
        with stage.counted() as seen:
            while "LIST events" not in seen:
                await stage.ensure()
                await asyncio.sleep(0.05)
    return seen
