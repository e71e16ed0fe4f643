"""Claims that become volumes (behaviour.md 12, with its names)."""

from functools import partial

import pytest

from shared.kubernetes import PERSISTENT_VOLUMES
from tests.e2e.case import Case
from tests.e2e.cluster import kubectl, until


async def test_deployment_using_storage_rw(case: Case) -> None:
    """A ReadWriteMany claim binds, its pod becomes ready, and what it writes lies in the volume's directory."""
    volume = await case.dynamic(options=["enable-xattr"])
    await case.running()
    await case.write("/data/out.txt", "written")

    await case.holds(f"/{volume}/out.txt")


async def test_quota_using_storage_rw(case: Case) -> None:
    """`df` in the pod shows the size that the claim asked for."""
    await case.dynamic()
    await case.running()

    assert await case.df() == "1.0G"


async def test_dynamic_expand(case: Case) -> None:
    """A claim that grows is seen in `df` without a restart."""
    await case.dynamic()
    await case.running()
    await case.grow("data", "2Gi")

    async def has_grown() -> bool:
        return await case.df() == "2.0G" and await case.capacity("data") == "2Gi"

    await until(has_grown, within=60, what="2 GiB in df and in the claim's status")


async def test_set_quota_in_controller(case: Case) -> None:
    """The quota is there before any pod mounts the volume."""
    volume = await case.dynamic()

    quota = await case.cluster.juicefs("quota", "get", "META", "--path", f"/{volume}", database=case.database)

    assert "1.0 GiB" in quota


async def test_capacity_below_1_gib(case: Case) -> None:
    """A quota is whole GiB: less becomes one, and the claim says so."""
    await case.storage_class()
    await case.claim(size="100Mi")

    assert await case.capacity("data") == "1Gi"


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
async def test_single_writer(case: Case, mode: str) -> None:
    """A volume for one machine, or for one pod, is an ordinary one."""
    await case.storage_class()
    await case.claim(accessModes=[mode])
    await case.running()

    await case.write("/data/out.txt", "written")


async def test_delete_pvc(case: Case) -> None:
    """With its claim a volume's directory goes, and what was in it."""
    volume = await case.dynamic()
    await case.running()
    await case.write("/data/out.txt", "written")
    await case.delete()

    await case.delete_claim("data")

    await case.holds(without=[f"/{volume}"])
    await until(partial(case.cluster.is_gone, PERSISTENT_VOLUMES, volume), what="its volume gone")


async def test_reclaim_policy_retain(case: Case) -> None:
    """With Retain, the volume and its directory stay when the claim goes."""
    volume = await case.dynamic(reclaimPolicy="Retain")
    await case.running()
    await case.write("/data/out.txt", "written")
    await case.delete()

    await case.delete_claim("data")

    await case.holds(f"/{volume}/out.txt")
    await case.released(volume)
    await kubectl("delete", "pv", volume)


async def test_wait_for_first_consumer(case: Case) -> None:
    """The claim waits for its first pod, and then has a template's value of the pod's node."""
    await case.storage_class({"pathPattern": "at-${.node.name}"}, volumeBindingMode="WaitForFirstConsumer")
    await case.pending_claim()
    await case.pod()
    await case.bound("data")
    node = (await case.ready())[0]["spec"]["nodeName"]
    await case.write("/data/out.txt", "written")

    await case.holds(f"/at-{node}/out.txt")


async def test_path_pattern_in_storage_class(case: Case) -> None:
    """A directory named by the claim's namespace, name, label and annotation."""
    pattern = "${.pvc.namespace}-${.pvc.name}-${.pvc.labels.team}-${.pvc.annotations.tier}"
    await case.storage_class({"pathPattern": pattern})
    await case.claim(labels={"team": "red"}, annotations={"tier": "gold"})
    await case.running()
    await case.write("/data/out.txt", "written")

    await case.holds(f"/{case.namespace}-data-red-gold/out.txt")


async def test_dynamic_pvc_delete_with_path_pattern(case: Case) -> None:
    """The last claim of a directory takes it along."""
    await case.dynamic({"pathPattern": "together"})
    await case.running()
    await case.write("/data/out.txt", "written")
    await case.delete()

    await case.delete_claim("data")

    await case.holds(without=["/together"])


async def test_dynamic_pvc_delete_not_last_with_path_pattern(case: Case) -> None:
    """One of two claims of a directory leaves it to the other."""
    await case.dynamic({"pathPattern": "together"})
    await case.claim("other")
    await case.running(claims={"data": "other"})
    await case.write("/data/out.txt", "written")

    volume = case.volumes[0]
    await case.delete_claim("data")

    await until(lambda: case.cluster.is_gone(PERSISTENT_VOLUMES, volume), what="the volume deleted")
    assert await case.exec("cat", "/data/out.txt") == "written"
