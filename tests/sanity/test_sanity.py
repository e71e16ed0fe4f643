from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from demo.driver import Driver, local_driver
from shared.mounttable import MountTable
from tests.sanity import csi_sanity, skipped
from tests.sanity.csi_sanity import Spec
from tests.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

NOT_RUN = {"skipped", "pending"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver() -> AsyncIterator[Driver]:
    async with local_driver() as driver:
        yield driver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def specs(driver: Driver) -> list[Spec]:
    return await csi_sanity.check(driver, await csi_sanity.build())


async def test_every_spec_that_applies_passes(specs: list[Spec], subtests: pytest.Subtests) -> None:
    """csi-sanity: what a container orchestrator may expect of the capabilities that we tell."""
    assert len(specs) > 100
    for spec in specs:
        if spec.status not in NOT_RUN:
            with subtests.test(spec.name):
                assert spec.status == "passed", spec.words


async def test_no_other_spec_is_skipped_than_those_with_a_reason(specs: list[Spec]) -> None:
    """A capability that is lost, or a spec that is new, has to be noticed."""
    assert sorted(spec.name for spec in specs if spec.status in NOT_RUN) == sorted(skipped.reasons())


async def test_nothing_is_left_of_it(driver: Driver, specs: list[Spec]) -> None:
    """Every volume was unpublished and deleted: no target, and in time no mount and no client."""

    def left() -> list[str]:
        ours = [entry for entry in MountTable().read() if entry.is_juicefs]
        mounts = [entry.mount_point for entry in ours if entry.mount_point.startswith(f"{driver.base}/")]
        return mounts + [f"process {pid}" for pid in driver.clients()]

    assert specs
    with suppress(TimeoutError):
        await until(lambda: not left(), within=75)  # mountpod looks again after a minute at most
    assert left() == []
    assert list(driver.pods.iterdir()) == []
