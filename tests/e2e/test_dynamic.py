"""Claims that become volumes (behaviour.md 12, with its names)."""

from tests.e2e.case import Case
from tests.e2e.cluster import until


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

    assert (await case.exec("df", "-h", "--output=size", "/data")).split()[-1] == "1.0G"


async def test_dynamic_expand(case: Case) -> None:
    """A claim that grows is seen in `df` without a restart."""
    await case.dynamic()
    await case.running()
    await case.grow("data", "2Gi")

    async def shows() -> bool:
        return (await case.exec("df", "-h", "--output=size", "/data")).split()[-1] == "2.0G"

    await until(shows, within=60, what="df shows 2.0G")
    assert await case.capacity("data") == "2Gi"
