"""Many pods at once, and services that end in the midst of it (promises 6, 12 and 13)."""

import time
from collections.abc import Sequence

import pytest

from tests.e2e import driver, objects
from tests.e2e.case import Case
from tests.e2e.cluster import references

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]


async def test_30_pods_of_one_volume(case: Case) -> None:
    """One mount pod, thirty references; when all leave at once, nothing is left."""
    volume = await case.dynamic()
    started = time.monotonic()
    await case.deployment(replicas=30, within=180)
    case.figures.append(f"all ready after {time.monotonic() - started:.0f} s")
    await case.referenced(volume, 30)

    await case.scale(0)

    await case.unused(volume)


async def test_20_volumes_at_once(case: Case) -> None:
    """Twenty clients start at once."""
    volumes = await _volumes(case, 20)
    started = time.monotonic()
    await case.pods_of([f"v{number}" for number in range(20)])
    await case.all_ready(20, within=240)

    case.figures.append(f"all ready after {time.monotonic() - started:.0f} s")
    await _share_one_each(case, volumes, users=1)


@pytest.mark.machine
@pytest.mark.parametrize("app", [driver.MOUNTPOD, driver.NODE])
async def test_service_killed_during_twenty_publishes(case: Case, app: str) -> None:
    """Twenty pods of ten volumes become ready all the same, and no client is there twice."""
    volumes = await _volumes(case, 10)
    await case.pods_of([f"v{number % 10}" for number in range(20)])
    await case.starting(4)
    await driver.killed(case.cluster, app)

    await case.all_ready(20, within=240)

    await _share_one_each(case, volumes, users=2)
    await driver.ready(case.cluster, app)


async def _volumes(case: Case, count: int) -> Sequence[str]:
    """So many static volumes `v0`, `v1`, … of one file system, with a claim each."""
    secret = ("secret", case.namespace)
    names = [f"{case.namespace}-v{number}" for number in range(count)]
    made = [objects.volume(name, secret=secret, attributes={"subPath": name}) for name in names]
    claims = [
        objects.claim(f"v{number}", case.namespace, storage_class="", volumeName=name)
        for number, name in enumerate(names)
    ]
    await case.cluster.apply(objects.secret(*secret, database=case.database), *made, *claims)
    return [await case.bound(f"v{number}") for number in range(count)]


async def _share_one_each(case: Case, volumes: Sequence[str], *, users: int) -> None:
    for volume in volumes:
        assert len(references(await case.referenced(volume, users))) == users
