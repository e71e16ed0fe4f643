"""Volumes that an admin made (behaviour.md 12, with its names)."""

import pytest

from shared.kubernetes import PERSISTENT_VOLUMES, SECRETS
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, until

PROVISIONED = {"pv.kubernetes.io/provisioned-by": "csi.juicefs.com"}


async def test_deployment_use_pv_rw(case: Case) -> None:
    """The whole file system: what a pod writes lies in its root."""
    await case.static()
    await case.running()
    await case.write("/data/out.txt", "written")

    await case.holds("/out.txt")


async def test_deployment_use_pv_ro(case: Case) -> None:
    """A reader becomes ready, reads, and can't write."""
    await case.static()
    await case.static("readers", mode="ReadOnlyMany")
    await case.running("writer")
    await case.write("/data/out.txt", "written", pod="writer")
    await case.running(claims={"data": "readers"})

    assert await case.exec("cat", "/data/out.txt") == "written"
    with pytest.raises(AssertionError, match="Read-only file system"):
        await case.exec("touch", "/data/other")


async def test_subpath(case: Case) -> None:
    """A directory of a file system, that is made where it is missing."""
    await case.static(attributes={"subPath": "some/directory"})
    await case.running()
    await case.write("/data/out.txt", "written")

    await case.holds("/some/directory/out.txt")


async def test_subpaths_of_kubelet(case: Case) -> None:
    """`volumeMounts[].subPath` is kubelet's own bind; it ends with the pod."""
    volume = await case.static()
    await case.running(subpath="inner")
    await case.write("/data/out.txt", "written")

    await case.holds("/inner/out.txt")
    await case.delete()
    await case.unused(volume)


async def test_static_delete_policy(case: Case) -> None:
    """A static volume's directory survives its claim, even with reclaim policy Delete."""
    volume = await case.static(
        attributes={"subPath": "kept"}, annotations=PROVISIONED, persistentVolumeReclaimPolicy="Delete"
    )
    await case.running()
    await case.write("/data/out.txt", "written")
    await case.delete()

    await case.delete_claim("data")

    await until(lambda: case.cluster.is_gone(PERSISTENT_VOLUMES, volume), what="the PersistentVolume deleted")
    await case.holds("/kept/out.txt")


async def test_multi_pvc(case: Case) -> None:
    """A pod with two volumes."""
    await case.static("one", {"subPath": "one"}, annotations=PROVISIONED)
    await case.static("two", {"subPath": "two"}, annotations=PROVISIONED)
    await case.running(claims={"one": "one", "two": "two"})
    await case.write("/one/out.txt", "1")
    await case.write("/two/out.txt", "2")

    await case.holds("/one/out.txt", "/two/out.txt")


async def test_secret_has_owner_reference_static(case: Case) -> None:
    """The mount pod's Secret goes with its PersistentVolume, whose handle is not its name."""
    handle = f"{case.namespace}-handle"
    await case.static(handle=handle)
    await case.running()

    secret = await case.cluster.api.get(SECRETS, f"juicefs-{handle}-secret", namespace=SYSTEM)
    owners = [(owner["kind"], owner["name"]) for owner in secret["metadata"]["ownerReferences"]]

    assert owners == [("PersistentVolume", f"{case.namespace}-data")]
