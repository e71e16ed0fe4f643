"""A controller that ends between any two of its steps, and the calls that follow."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from services.controller import volumes as steps
from services.controller.records import Records
from services.controller.webdav import Webdav
from shared.domain import GIB, Subpath
from shared.errors import CommandFailed
from shared.runner import run
from tests.integration.controlling import Controller, controlling, filesystem

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    async with controlling(filesystem(tmp_path)) as controller:
        yield controller


class Crash(BaseException):
    """The process ends here."""


async def interrupted(controller: Controller, step: int, call: Callable[[], Awaitable[Any]]) -> bool:
    """End the call before its `step`-th step outside this process; False if it was done before."""
    begun = 0

    def counted(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def count(*args: Any, **keywords: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun == step:
                raise Crash
            return await original(*args, **keywords)

        return count

    with pytest.MonkeyPatch.context() as patch, suppress(Crash):
        patch.setattr(Webdav, "_ask", counted(Webdav._ask))
        patch.setattr(steps, "run", counted(run))
        await call()
        return False
    controller.restarted()
    return True


@pytest.mark.parametrize("is_tried_again", [True, False])
async def test_a_crash_between_any_two_steps_of_create(controller: Controller, *, is_tried_again: bool) -> None:
    """Promise 6: the same call again succeeds, the opposite one cleans up."""
    await controller.create("other")
    create = partial(controller.create, "v", path="place/v")
    for step in count(1):
        was_interrupted = await interrupted(controller, step, create)
        if is_tried_again:
            await create()
            assert (await controller.quota("place/v")).may_be(GIB)
        await controller.volumes.delete(controller.fs, "v")
        await nothing_left(controller, "place/v")
        if not was_interrupted:
            return


@pytest.mark.parametrize("is_tried_again", [True, False])
async def test_a_crash_between_any_two_steps_of_delete(controller: Controller, *, is_tried_again: bool) -> None:
    """Promise 6, the other way round."""
    await controller.create("other")
    for step in count(1):
        await controller.create("v", path="place/v")
        await controller.expand("v", required=2 * GIB)
        was_interrupted = await interrupted(controller, step, lambda: controller.volumes.delete(controller.fs, "v"))
        if is_tried_again:
            await controller.volumes.delete(controller.fs, "v")
            await nothing_left(controller, "place/v")
        if not was_interrupted:
            return


@pytest.mark.parametrize("next_size", [1539, 1538])
async def test_a_crash_between_any_two_steps_of_expand(controller: Controller, next_size: int) -> None:
    """Promise 6: the same call again succeeds; one that is late and smaller finishes what was noted, or was not."""
    await controller.create("other", required=7 * GIB)
    for step in count(1):
        await controller.create("v", required=1537 * GIB, path="place/v")
        was_interrupted = await interrupted(controller, step, partial(controller.expand, "v", required=1539 * GIB))
        before = max(controller.bytes_allowed())
        capacity = await controller.expand("v", required=next_size * GIB)
        assert capacity in {next_size * GIB, 1539 * GIB}
        assert capacity >= before
        assert controller.bytes_allowed() == {7 * GIB, capacity}
        await controller.volumes.delete(controller.fs, "v")
        await nothing_left(controller, "place/v")
        if not was_interrupted:
            assert capacity == 1539 * GIB
            return


async def test_an_expansion_that_was_cut_off_is_told_and_finished_by_create(controller: Controller) -> None:
    """Promise 6: what was noted counts, whoever comes next."""
    await controller.create("v")
    async with controller.gateways.open(controller.fs) as webdav:
        await Records().grow(webdav, "v", 3 * GIB)
    assert (await controller.create("v")).capacity == 3 * GIB
    assert controller.bytes_allowed() == {3 * GIB}


async def nothing_left(controller: Controller, path: str) -> None:
    with pytest.raises(CommandFailed, match="no such file"):
        await controller.quota(path)
    async with controller.gateways.open(controller.fs) as webdav:
        assert set(await webdav.list(Subpath(text=".juicefs-csi/volumes"))) == {"other"}
        assert await webdav.list(Subpath(text=".juicefs-csi/places")) == {}
        assert await webdav.list(Subpath(text=".juicefs-csi/grown")) == {}
