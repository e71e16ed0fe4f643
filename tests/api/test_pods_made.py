"""Mount pods as they are made: once, by name, with a Secret that is written only when it differs."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from shared.errors import CommandFailed, InvalidRequest, NotReady
from shared.kubernetes import NAMESPACES, PODS, SECRETS, Kubernetes
from shared.manifests import pod_name
from tests.api.mounting import Stage, container, staged
from tests.waiting import until


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Stage]:
    async with staged(api) as found:
        yield found


async def test_a_crowd_gets_one_pod(stage: Stage) -> None:
    """Promises 12 and 15: a hundred at once are one Secret and one pod, and no list."""
    async with stage.leading():
        with stage.counted() as requests:
            names = await asyncio.gather(*(stage.ensure(f"p{number}") for number in range(100)))
        (pod,) = await stage.pods()
    assert len(set(names)) == 1
    assert pod["metadata"]["name"] == pod_name("n1", names[0])
    counts = Counter(requests)
    assert (counts["POST pods"], counts["POST secrets"]) == (1, 1)
    assert not [request for request in requests if request.startswith("LIST")]


async def test_its_first_pod_names_whom_it_is_for(stage: Stage) -> None:
    """behaviour.md 4.5: the annotation of the target is there from the start."""
    async with stage.leading():
        await stage.ensure()
    (pod,) = await stage.pods()
    assert stage.target() in pod["metadata"]["annotations"].values()


async def test_a_second_publish_writes_nothing(stage: Stage) -> None:
    """e2e mount_secret_not_updated_when_reused; promise 15: no list either."""
    async with stage.leading():
        await stage.serve()
        with stage.counted() as requests:
            await asyncio.sleep(0)
            await stage.ensure("p2")
    assert not [request for request in requests if not request.startswith("GET")]


async def test_the_secret_is_the_volumes(stage: Stage) -> None:
    """e2e secret_has_owner_reference: also with a handle that is not the volume's name."""
    await stage.remove_volume()
    volume = await stage.make_volume(f"other-{stage.name}")
    async with stage.leading():
        await stage.ensure()
    found = await stage.api.get(SECRETS, f"juicefs-{stage.handle}-secret", namespace=stage.name)
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [volume["metadata"]["uid"]]
    assert base64.b64decode(found["data"]["META_PASSWORD"]) == b"marker-1"


async def test_another_secret_is_another_client_and_is_written(stage: Stage) -> None:
    """Promise 19: the old one keeps its binds; keys that are gone are gone from the copy."""
    await stage.make_secret(envs='{"OLD": "1"}')
    async with stage.leading():
        first = await stage.ensure(envs='{"OLD": "1"}')
        await stage.make_secret(envs='{"NEW": "1"}')
        second = await stage.ensure(envs='{"NEW": "1"}')
    found = await stage.api.get(SECRETS, f"juicefs-{stage.handle}-secret", namespace=stage.name)
    assert first != second
    assert ("NEW" in found["data"], "OLD" in found["data"]) == (True, False)
    assert len(await stage.pods()) == 2


async def test_an_equal_secret_is_left_alone(stage: Stage) -> None:
    """behaviour.md 2.4: also by another mountpod, and for another pod."""
    async with stage.leading():
        await stage.ensure()
    before = await stage.api.get(SECRETS, f"juicefs-{stage.handle}-secret", namespace=stage.name)
    await stage.remove((await stage.pods())[0])
    async with stage.leading():
        await stage.ensure()
    after = await stage.api.get(SECRETS, f"juicefs-{stage.handle}-secret", namespace=stage.name)
    assert before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]


async def test_a_pod_of_the_name_that_lives_is_taken(stage: Stage) -> None:
    """Two leaders for a moment: the second one finds what the first one made."""
    async with stage.leading():
        name = await stage.ensure()
        plan = await stage.cluster.planner.plan(stage.handle, node="n1")
        (pod,) = await stage.pods()
        stage.cluster.index._pods.clear()
        assert (await stage.ensure(), plan.settings.mount_name) == (name, name)
        assert [one["metadata"]["uid"] for one in await stage.pods()] == [pod["metadata"]["uid"]]


@pytest.mark.parametrize("phase", ["leaving", "Failed", "Succeeded"])
async def test_a_pod_of_the_name_that_is_over_is_passed_by(stage: Stage, phase: str) -> None:
    """Its name is taken until it is gone: the next one has another, and waits for its lock."""
    async with stage.leading():
        name = await stage.ensure()
    (old,) = await stage.pods()
    if phase == "leaving":
        await stage.api.delete(PODS, old["metadata"]["name"], namespace=stage.name)
    else:
        await stage.kubelet_says(phase=phase)
    async with stage.leading():
        assert await stage.ensure() == name
        (new,) = await stage.until_pods(1)
    names = {pod_name("n1", name, after=old["metadata"]["uid"])}
    if phase != "leaving":  # it may be gone by now, and its name free
        names.add(pod_name("n1", name))
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["metadata"]["name"] in names


async def test_two_volumes_with_one_handle(stage: Stage) -> None:
    """Issue 4, bad input: both are named, and when one is gone the other works."""
    await stage.make_volume(f"two-{stage.name}")
    async with stage.leading():
        with pytest.raises(InvalidRequest, match=f"{stage.handle} and two-{stage.name}"):
            await stage.ensure()
        await stage.remove_volume(f"two-{stage.name}")
        await until(lambda: not _is_refused(stage))
        await stage.ensure()


async def test_a_secret_that_is_missing_and_comes(stage: Stage) -> None:
    """Issue 4, bad input: the message names it; nothing else has to be done."""
    await stage.api.delete(SECRETS, "fs", namespace=stage.name)
    async with stage.leading():
        with pytest.raises(NotReady, match=f"{stage.handle}: Secret {stage.name}/fs does not exist"):
            await stage.ensure()
        await stage.make_secret()
        await stage.ensure()


@pytest.mark.parametrize(
    ("csi", "message"),
    [
        ({"volumeAttributes": {"juicefs/mount-cpu-limit": "much"}}, "juicefs/mount-cpu-limit"),
        ({"volumeAttributes": {"subPath": "a,b"}}, "subPath"),
        ({"volumeAttributes": {"juicefs/mount-cache-pvc": "none"}}, "none"),
        ({"nodePublishSecretRef": None}, "nodePublishSecretRef"),
    ],
)
async def test_a_volume_that_cant_be_understood(stage: Stage, csi: dict[str, object], message: str) -> None:
    """The key is named, and no pod is made."""
    await stage.remove_volume()
    await stage.make_volume(csi=csi)
    async with stage.leading():
        with pytest.raises((InvalidRequest, NotReady), match=message):
            await stage.ensure()
    assert not await stage.pods()


async def test_what_kubernetes_refuses_is_said(stage: Stage) -> None:
    """The API server's own words, to the publish."""
    context = {"juicefs/mount-cpu-limit": "1", "juicefs/mount-cpu-request": "2"}
    await stage.remove_volume()
    await stage.make_volume(csi={"volumeAttributes": context})
    async with stage.leading():
        with pytest.raises(InvalidRequest, match="must be less than or equal to cpu limit"):
            await stage.ensure()


async def test_an_image_that_cant_be_pulled(stage: Stage) -> None:
    """Issue 4: said at once to who asks, as an Event of the workload; the pod is left to Kubernetes."""
    async with stage.leading():
        await stage.ensure()
        waiting = {"reason": "ErrImagePull", "message": "no such image mount:1"}
        await stage.kubelet_says(**container(phase="Pending", waiting=waiting))
        await until(lambda: any("IMAGE_PULL" in str(one) for one in stage.recorder._waiting) or stage.recorder._said)
        with pytest.raises(CommandFailed, match="no such image") as failed:
            await stage.ensure()
        assert failed.value.reason == "IMAGE_PULL"
        await stage.until_pods(1)
        await stage.kubelet_runs()
        await until(lambda: _runs(stage))
        await stage.ensure()


async def test_a_namespace_that_is_missing(stage: Stage) -> None:
    """As the API server says it."""
    async with stage.leading():
        await stage.api.delete(NAMESPACES, stage.name)
        with pytest.raises(Exception, match=r"terminated|terminating|not found"):
            await stage.ensure()


def _runs(stage: Stage) -> bool:
    pods = [pod for of in stage.cluster.index._pods.values() for pod in of.values()]
    return all(pod.status.container_statuses[0].state.running for pod in pods)


def _is_refused(stage: Stage) -> bool:
    try:
        stage.cluster.planner.volumes.get(stage.handle)
    except InvalidRequest:
        return True
    return False
