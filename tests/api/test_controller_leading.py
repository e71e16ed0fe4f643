"""Several controllers, of which one works; and one whose API server goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from services.controller import leading
from services.controller.leading import Duties
from shared.kubernetes import LEASES, PERSISTENT_VOLUMES, Kubernetes
from tests.api.claiming import Stage, eventually, staged
from tests.api_server import ApiServer
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def stage(server: ApiServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(server, tmp_path) as stage:
        await stage.make_secret()
        await stage.make_class()
        yield stage


@asynccontextmanager
async def contending(stage: Stage, server: ApiServer, identity: str) -> AsyncIterator[None]:
    duties = Duties(
        provisions=True, resizes=True, namespace="default", identity=identity, driver=stage.driver,
        kubeconfig=str(server.kubeconfig),
    )  # fmt: skip
    volumes = stage.controller.restarted()
    task = asyncio.create_task(leading.run(duties, volumes=volumes, metrics=stage.metrics, say=stage.say))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def leader(stage: Stage) -> str:
    lease = await stage.find(LEASES, stage.driver)
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


async def test_one_of_two_works_and_the_other_takes_over(stage: Stage, server: ApiServer) -> None:
    """By the Lease of the driver's name; who ends in an orderly way gives it up at once."""
    async with contending(stage, server, "second"):
        async with contending(stage, server, "first"):
            for number in range(5):
                await stage.volume(await stage.claim(f"a{number}"))
            first = await leader(stage)
            assert first in {"first", "second"}
        if first == "first":
            await eventually(partial(_is_led_by, stage, "second"))
        await stage.volume(await stage.claim("b"))
        assert await leader(stage) == "second"
        await until(lambda: len(stage.said) == 6)


async def _is_led_by(stage: Stage, identity: str) -> bool:
    return await leader(stage) == identity


async def test_claims_made_while_nobody_led_are_found(stage: Stage, server: ApiServer) -> None:
    """Level-triggered, claims that go as those that come."""
    async with contending(stage, server, "first"):
        old = await stage.bound("old")
    name = await stage.claim("new")
    await stage.unclaim("old", old)
    async with contending(stage, server, "second"):
        await stage.volume(name)
        await stage.gone(old)
    assert await stage.directories() == {name}


async def test_an_api_server_that_goes_away_and_comes_back(stage: Stage, server: ApiServer) -> None:
    """Nothing is lost and nothing made twice."""
    async with contending(stage, server, "first"):
        await stage.volume(await stage.claim("before"))
        server.kill()
        server.start()
        async with Kubernetes.connect(kubeconfig=str(server.kubeconfig)) as stage.api:
            name = await stage.claim("after")
            await eventually(partial(stage.find, PERSISTENT_VOLUMES, name), within=60)
    assert len(await stage.directories()) == 2
