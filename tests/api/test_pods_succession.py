"""Mount pods that leave while they are used, that are ended, and that another mountpod, or another driver, made."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.mountpod import reconcile
from services.mountpod import references as references_module
from services.mountpod.pod_index import FINALIZER
from shared.api.juicefs.v1 import ClientLost, DescriptorKept, MountIdle, TargetBound, TargetUnbound
from shared.errors import Busy, DriverError
from shared.kubernetes import PERSISTENT_VOLUMES, PODS, SECRETS, Kubernetes
from shared.manifests import MOUNT, pod_name, reference
from shared.pod_patch import Configuration
from tests.api.mounting import Object, Stage, container, staged
from tests.waiting import until


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Stage]:
    async with staged(api) as found:
        yield found


async def test_a_pod_that_is_deleted_gets_a_successor(stage: Stage) -> None:
    """Promise 18: one, at once, on the same path, before the first is gone."""
    async with stage.leading():
        name = await stage.serve()
        (old,) = await stage.pods()
        stage.node.leaving.add(name)
        await stage.api.delete(PODS, old["metadata"]["name"], namespace=stage.name)
        (new,) = await stage.until_pods(1)
        await until(lambda: stage.node.released)
        await stage.kubelet_ends()
        await stage.kubelet_runs()
        assert [pod["metadata"]["uid"] for pod in await stage.pods()] == [new["metadata"]["uid"]]
    assert new["metadata"]["annotations"][MOUNT] == name
    assert new["metadata"]["name"] == pod_name("n1", name, after=old["metadata"]["uid"])
    assert stage.node.released == [name]


@pytest.mark.parametrize("how", ["evicted", "crash loop", "ended", "gone"])
async def test_a_pod_that_ends_gets_a_successor(stage: Stage, how: str) -> None:
    """Promise 18: whatever ended it; and exactly one."""
    async with stage.leading():
        name = await stage.serve()
        (old,) = await stage.pods()
        if how == "gone":
            await stage.remove(old)
        else:
            await stage.kubelet_says(
                **{
                    "evicted": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
                    "crash loop": container(restarts=3, waiting={"reason": "CrashLoopBackOff"}),
                    "ended": container(phase="Succeeded", terminated={"exitCode": 0}),
                }[how]
            )
        new = await _other(stage, old)
        assert new["metadata"]["annotations"][MOUNT] == name
        assert stage.target() in new["metadata"]["annotations"].values()


async def test_a_successor_is_made_of_todays_objects(stage: Stage) -> None:
    """Promise 19: Secret, volume and configuration as they are now, on the old path."""
    async with stage.leading():
        name = await stage.serve()
        (old,) = await stage.pods()
        await stage.make_secret(envs='{"NEW": "1"}')
        patch = {"spec": {"mountOptions": ["cache-size=77"]}}
        await stage.api.patch(PERSISTENT_VOLUMES, stage.handle, patch)
        stage.cluster.planner.configuration = Configuration.parse("mountPodPatch: [{ceMountImage: 'mount:2'}]")
        await until(lambda: stage.cluster.planner.volumes.get(stage.handle).spec.mount_options)
        await stage.remove(old)
        new = await _other(stage, old)
    client = new["spec"]["containers"][0]
    assert (client["image"], new["metadata"]["annotations"][MOUNT]) == ("mount:2", name)
    assert "cache-size=77" in client["args"][-1]
    assert "NEW" in (await stage.api.get(SECRETS, f"juicefs-{stage.handle}-secret", namespace=stage.name))["data"]


async def test_a_secret_that_is_missing_when_a_pod_must_come_back(stage: Stage) -> None:
    """Promise 18: it comes back when the Secret does."""
    async with stage.leading():
        await stage.serve()
        (old,) = await stage.pods()
        await stage.api.delete(SECRETS, "fs", namespace=stage.name)
        await stage.remove(old)
        await _until_event(stage, "MountFailed", f"Secret {stage.name}/fs")
        assert not await stage.pods()
        await stage.make_secret()
        assert await _other(stage, old)


async def test_a_successor_that_cant_start_follows_the_configuration(stage: Stage) -> None:
    """Promise 19: a wrong image that was corrected; and users hear of the wrong one."""
    async with stage.leading():
        await stage.serve()
        (old,) = await stage.pods()
        stage.cluster.planner.configuration = Configuration.parse("mountPodPatch: [{ceMountImage: 'none:1'}]")
        await stage.remove(old)
        wrong = await _other(stage, old)
        waiting = {"reason": "ImagePullBackOff", "message": "none:1"}
        await stage.kubelet_says(**container(phase="Pending", waiting=waiting))
        await _until_event(stage, "MountFailed", "IMAGE_PULL")
        stage.cluster.planner.configuration = Configuration()
        await stage.kubelet_says(**container(phase="Pending", waiting={**waiting, "message": "still"}))
        right = await _other(stage, wrong)
    assert right["spec"]["containers"][0]["image"] == "mount:1"


async def test_an_end_deletes_this_pod_and_says_when_it_is_gone(stage: Stage) -> None:
    """Architecture 4, remove."""
    async with stage.leading() as pods:
        name = await stage.serve()
        stage.node.targets.clear()
        stage.node.unmount(name)
        await pods.end(name)
        assert "MountClosed" not in stage.bus.kinds()
        await stage.kubelet_ends()
        await until(lambda: stage.bus.kinds().count("MountClosed") == 1)
        assert (await stage.pods(), pods.clients()) == ([], {})
        await pods.end(name)
        await until(lambda: stage.bus.kinds().count("MountClosed") == 2)


async def test_an_end_deletes_no_other_pod_of_the_name(stage: Stage) -> None:
    """The UID is a precondition: what came meanwhile stays."""
    async with stage.leading():
        name = await stage.serve()
        (stale,) = stage.cluster.index.of("n1", name)
        await stage.remove((await stage.pods())[0])
        (new,) = await stage.until_pods(1)
        await stage.cluster.maker.delete(stale)
        assert (await stage.until_pods(1))[0]["metadata"]["uid"] == new["metadata"]["uid"]


async def test_the_last_target_takes_its_client_along(stage: Stage) -> None:
    """MountIdle, Close, end: without anybody's help."""
    async with stage.leading():
        name = await stage.serve()
        stage.node.targets.clear()
        stage.say(MountIdle(), name)
        await _until_left(stage)
        await stage.kubelet_ends()
        await until(lambda: "MountClosed" in stage.bus.kinds())
    assert stage.node.devices[name] == ""


async def test_what_is_left_on_a_node_is_told_to_be_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level-triggered: MountClosed may have been lost, and the node keeps a client's directory until it hears it."""
    monkeypatch.setattr(reconcile, "_PERIOD", 0.1)
    waiting, over = f"{stage.handle}-aaaaaa", f"{stage.handle}-bbbbbb"
    stage.node.devices |= {waiting: "", over: ""}
    stage.node.expected.add(waiting)
    async with stage.leading():
        await until(lambda: "MountClosed" in stage.bus.kinds())
    assert {said.mount for said in stage.bus.said if said.mount_closed is not None} == {over}


@pytest.mark.parametrize("order", ["before", "after"])
async def test_a_publish_beside_an_end_gets_another_pod(stage: Stage, order: str) -> None:
    """Promise 14: it is never left with the one that goes."""
    async with stage.leading() as pods:
        name = await stage.serve()
        stage.node.targets.clear()
        stage.node.unmount(name)
        (old,) = await stage.pods()
        if order == "before":
            await stage.ensure("p2")
            stage.node.expected.add(name)
        await pods.end(name)
        if order == "after":
            await stage.ensure("p2")
        await stage.kubelet_ends()
        assert (await _other(stage, old))["metadata"]["annotations"][MOUNT] == name


async def test_references_are_written_together(stage: Stage) -> None:
    """Thirty publishes are one write of annotations; who left is taken away."""
    async with stage.leading():
        name = await stage.serve("p0")
        with stage.counted() as requests:
            for number in range(1, 30):
                stage.bind(name, f"p{number}")
                stage.say(TargetBound(target=stage.target(f"p{number}")), name)
            stage.node.targets[name].remove(stage.target("p0"))
            stage.say(TargetUnbound(target=stage.target("p0")), name)
            await _until_references(stage, {stage.target(f"p{number}") for number in range(1, 30)})
    assert requests.count("PATCH pods") == 1


async def test_references_are_mended_from_the_nodes_report(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Level-triggered: an event that was lost, and one that somebody edited. Kubelet's own binds are not among them."""
    monkeypatch.setattr(reconcile, "_PERIOD", 0.1)
    monkeypatch.setattr(references_module, "_BEHIND", 0.05)
    async with stage.leading():
        name = await stage.serve()
        stage.bind(name, "p2")
        stage.node.targets[name].append("/var/lib/kubelet/pods/uid-p2/volume-subpaths/pv/c/0")
        (pod,) = await stage.pods()
        wrong = {"metadata": {"annotations": {reference("/gone"): "/gone"}}}
        await stage.api.patch(PODS, pod["metadata"]["name"], wrong, namespace=stage.name)
        await _until_references(stage, {stage.target(), stage.target("p2")})


async def test_an_upgrade_replaces_a_pod_in_order(stage: Stage) -> None:
    """The successor waits first; then the old one goes, hands over, and the new one has it."""
    async with stage.leading():
        name = await stage.serve()
        (old,) = await stage.pods()
        upgrading = asyncio.create_task(stage.restart(name))
        await stage.until_pods(2)
        await stage.kubelet_runs()
        stage.node.leaving.add(name)
        (new,) = await stage.until_pods(1)
        await until(lambda: stage.node.released)
        await stage.kubelet_ends()
        stage.say(DescriptorKept(), name)
        await upgrading
    assert new["metadata"]["name"] == pod_name("n1", name, after=old["metadata"]["uid"])


async def test_an_upgrade_whose_pod_cant_start_changes_nothing(stage: Stage) -> None:
    """The old client goes on, and the message says so."""
    async with stage.leading():
        name = await stage.serve()
        upgrading = asyncio.create_task(stage.restart(name))
        pods = await stage.until_pods(2)
        new = next(pod for pod in pods if pod["metadata"]["name"] != pod_name("n1", name))
        await stage.kubelet_says(pod=new, **container(phase="Pending", waiting={"reason": "ErrImagePull"}))
        with pytest.raises(DriverError, match="the client before it goes on"):
            await upgrading
        await stage.kubelet_ends()
        assert (await stage.until_pods(1))[0]["metadata"]["name"] == pod_name("n1", name)


async def test_a_client_that_cannot_die_is_left_behind(stage: Stage) -> None:
    """It was killed while it waited for its own mount: Kubernetes takes it for running, the node knows better."""
    async with stage.leading():
        name = await stage.serve()
        (old,) = await stage.pods()
        stage.node.lost.add(name)
        stage.say(ClientLost(), name)
        new = await _other(stage, old)
        stage.node.lost.clear()
        await stage.kubelet_runs()
        await until(lambda: [pod.metadata.uid for pod in stage.known() if not pod.metadata.deletion_timestamp])
        assert [pod["metadata"]["uid"] for pod in await stage.until_pods(1)] == [new["metadata"]["uid"]]
    assert new["metadata"]["name"] == pod_name("n1", name, after=old["metadata"]["uid"])


async def test_an_upgrade_that_was_cut_off_goes_on(stage: Stage) -> None:
    """Promise 6: mountpod died when the successor waited already; the next takes it away, and can begin anew."""
    async with stage.leading():
        name = await stage.serve()
        cut = asyncio.create_task(stage.restart(name))
        await stage.until_pods(2)
    cut.cancel()
    await asyncio.wait({cut})
    await stage.kubelet_runs()
    for pod in await stage.pods():
        assert "deletionTimestamp" not in pod["metadata"]
    async with stage.leading():
        await stage.until_pods(1)
        await stage.kubelet_ends()
        await until(lambda: len(stage.known()) == 1)
        again = asyncio.create_task(stage.restart(name))
        await stage.until_pods(2)
        await stage.kubelet_runs()
        stage.node.leaving.add(name)
        await stage.until_pods(1)
        await stage.kubelet_ends()
        stage.say(DescriptorKept(), name)
        await again


async def test_an_upgrade_of_what_is_starting_is_refused(stage: Stage) -> None:
    """Busy, not a second pod."""
    async with stage.leading():
        name = await stage.ensure()
        with pytest.raises(Busy):
            await stage.restart(name)
        assert len(await stage.pods()) == 1


async def test_another_mountpod_takes_over_what_is_there(stage: Stage) -> None:
    """e2e: the leader is killed; nothing is made anew, and all is known."""
    async with stage.leading():
        name = await stage.serve()
    before = [pod["metadata"]["uid"] for pod in await stage.pods()]
    async with stage.leading() as pods:
        with stage.counted() as requests:
            await stage.ensure("p2")
            await until(lambda: name in pods.clients())
        assert [pod["metadata"]["uid"] for pod in await stage.pods()] == before
        assert not {"POST pods", "DELETE pods"} & set(requests)
        await stage.remove((await stage.pods())[0])
        assert await stage.until_pods(1)


async def test_another_mountpod_knows_whose_clients_they_are(stage: Stage) -> None:
    """Also of a handle that is no name: `juicefs-csi-mount list` shows it, and its delay counts."""
    await stage.remove_volume()
    stage.handle = f"Volume {stage.name}"
    await stage.make_volume(f"v-{stage.name}", csi={"volumeAttributes": {"juicefs/mount-delete-delay": "500h"}})
    async with stage.leading():
        name = await stage.serve()
    async with stage.leading() as pods:
        found = pods.clients()[name]
    assert (found.volume_id, found.delete_delay) == (stage.handle, 1_800_000)


async def test_a_pod_that_went_while_nobody_led_comes_back(stage: Stage) -> None:
    """Level-triggered: the node's report says that it is used."""
    async with stage.leading():
        name = await stage.serve()
    (old,) = await stage.pods()
    await stage.remove(old)
    async with stage.leading():
        assert (await _other(stage, old))["metadata"]["annotations"][MOUNT] == name


@pytest.mark.parametrize("is_renamed", [False, True])
async def test_a_pod_of_the_driver_before_us(stage: Stage, *, is_renamed: bool) -> None:
    """behaviour.md 4.2, 4.5, 4.7: it serves until its users leave, and its finalizer goes with it.

    One that was brought back there has a new name, and the mount of the first.
    """
    name = f"{stage.handle}-abcdef"
    await _made_before(stage, name, suffix="ghijkl" if is_renamed else "abcdef")
    stage.bind(name)
    async with stage.leading() as pods:
        await until(lambda: name in pods.clients())
        stage.node.targets.clear()
        stage.say(MountIdle(), name)
        async with asyncio.timeout(10):
            while pods_left := await stage.pods():
                if not pods_left[0]["metadata"].get("finalizers"):
                    await stage.kubelet_ends()
                await asyncio.sleep(0.05)


async def _made_before(stage: Stage, mount: str, *, suffix: str) -> None:
    command = (
        f"/usr/local/bin/juicefs format x\nexec /bin/mount.juicefs ${{metaurl}} /jfs/{mount} -o metrics=0.0.0.0:9567"
    )
    body = {
        "metadata": {
            "name": f"juicefs-n1-{stage.handle}-{suffix}",
            "labels": {"app.kubernetes.io/name": "juicefs-mount", "volume-id": stage.handle, "juicefs-hash": "0" * 63},
            "annotations": {"juicefs-uniqueid": stage.handle, reference(stage.target()): stage.target()},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "jfs-mount", "image": "old", "command": ["sh", "-c", command]}],
        },
    }
    await stage.api.create(PODS, body, namespace=stage.name)
    await stage.kubelet_runs()


async def _other(stage: Stage, old: Object) -> Object:
    """The one pod that is there and not this one."""
    async with asyncio.timeout(10):
        while True:
            (pod,) = await stage.until_pods(1)
            if pod["metadata"]["uid"] != old["metadata"]["uid"]:
                return pod
            await asyncio.sleep(0.02)


async def _until_left(stage: Stage) -> None:
    await stage.until_pods(0)


async def _until_references(stage: Stage, targets: set[str]) -> None:
    async with asyncio.timeout(10):
        while True:
            (pod,) = await stage.pods()
            found = pod["metadata"]["annotations"]
            if {value for key, value in found.items() if key == reference(value)} == targets:
                return
            await asyncio.sleep(0.05)


async def _until_event(stage: Stage, reason: str, words: str) -> None:
    async with asyncio.timeout(10):
        while not any(words in said for said in await stage.events(reason)):
            await asyncio.sleep(0.05)
