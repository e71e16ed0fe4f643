"""A controller that is killed between any two of its steps, and the one that comes after it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from services.controller import volumes as steps
from services.controller.webdav import Webdav
from shared.domain import GIB
from shared.kubernetes import CLAIMS, EVENTS, PERSISTENT_VOLUMES, SECRETS, Kubernetes
from shared.runner import run
from tests.api.claiming import Stage, eventually, staged
from tests.api_server import ApiServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def stage(server: ApiServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(server, tmp_path) as stage:
        await stage.make_secret()
        yield stage


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Killer:
    """Ends the process before its `step`-th step outside of it, and whatever it does after that."""

    step: int
    begun: int = 0

    @property
    def has_struck(self) -> bool:
        return self.begun >= self.step

    def counted(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **keywords: Any) -> Any:
            if EVENTS not in args:
                self.begun += 1
            if self.has_struck:
                raise Crash
            return await original(*args, **keywords)

        return call

    def mortal(self, api: Kubernetes) -> Kubernetes:
        """The same API server, as the process sees it that is to be killed."""
        mortal = copy(api)
        for verb in ("get", "create", "patch", "delete"):
            setattr(mortal, verb, self.counted(getattr(api, verb)))
        return mortal


async def lives(stage: Stage, *, until: Callable[[], Awaitable[Any]], step: int = sys.maxsize) -> bool:
    """Serve until that has come; False if killed before."""
    killer = Killer(step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Webdav, "_ask", killer.counted(Webdav._ask))
        patch.setattr(steps, "run", killer.counted(run))
        serving = asyncio.create_task(stage.serve(api=killer.mortal(stage.api)))
        waiting = asyncio.create_task(eventually(until))
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        assert not serving.done() or killer.has_struck, serving.exception()
        for task in (serving, waiting):
            task.cancel()
        await asyncio.gather(serving, waiting, return_exceptions=True)
    return not killer.has_struck


async def test_a_crash_between_any_two_steps_of_provisioning(stage: Stage) -> None:
    """Promise 6: the next controller makes the same volume, and one of it; its claim's end takes all away."""
    await stage.make_class({"pathPattern": "place/${.pvc.name}", "secretFinalizer": "true"})
    for step in count(1):
        name = await stage.claim(f"c{step}")
        is_there = partial(stage.find, PERSISTENT_VOLUMES, name)
        was_done = await lives(stage, until=is_there, step=step)
        await lives(stage, until=is_there)
        assert await stage.records() == {name}
        assert await stage.directories("place") == {stage.of(f"c{step}")}
        assert (await stage.controller.quota(f"place/{stage.of(f'c{step}')}")).may_be(GIB)
        await stage.bind(f"c{step}", await stage.volume(name))
        await stage.unclaim(f"c{step}", name)
        await lives(stage, until=partial(stage.is_gone, name))
        assert await stage.records() == await stage.directories("place") == set()
        if was_done:
            print("steps of provisioning:", step - 1)
            return


async def test_a_crash_between_any_two_steps_of_deleting(stage: Stage) -> None:
    """Promise 6, the other way round: nothing is left, the finalizer on the Secret neither."""
    await stage.make_class({"pathPattern": "place/${.pvc.name}", "secretFinalizer": "true"})
    for step in count(1):
        name = await stage.claim(f"c{step}")
        await lives(stage, until=partial(stage.find, PERSISTENT_VOLUMES, name))
        await stage.bind(f"c{step}", await stage.volume(name))
        await stage.unclaim(f"c{step}", name)
        was_done = await lives(stage, until=partial(stage.is_gone, name), step=step)
        await lives(stage, until=partial(stage.is_gone, name))
        assert await stage.records() == await stage.directories("place") == set()
        assert "finalizers" not in (await stage.api.get(SECRETS, stage.name, namespace="default"))["metadata"]
        if was_done:
            print("steps of deleting:", step - 1)
            return


async def test_a_crash_between_any_two_steps_of_expanding(stage: Stage) -> None:
    """Promise 6: the next controller finishes it, and the claim's status tells of nothing else."""
    await stage.make_class()
    name = await stage.claim("a", size="1Gi")
    await lives(stage, until=partial(stage.find, PERSISTENT_VOLUMES, name))
    await stage.bind("a", await stage.volume(name))
    for step in count(1):
        size = f"{step + 1}Gi"
        body = {"spec": {"resources": {"requests": {"storage": size}}}}
        await stage.api.patch(CLAIMS, stage.of("a"), body, namespace="default")
        was_done = await lives(stage, until=partial(_has, stage, size), step=step)
        await lives(stage, until=partial(_has, stage, size))
        status = (await stage.api.get(CLAIMS, stage.of("a"), namespace="default"))["status"]
        assert (status.get("conditions", []), status.get("allocatedResourceStatuses")) == ([], None)
        assert (await stage.volume(name))["spec"]["capacity"] == {"storage": size}
        assert (await stage.controller.quota(name)).may_be((step + 1) * GIB)
        if was_done:
            print("steps of expanding:", step - 1)
            return


async def _has(stage: Stage, size: str) -> bool:
    claim = await stage.api.get(CLAIMS, stage.of("a"), namespace="default")
    return bool(claim["status"]["capacity"]["storage"] == size)
