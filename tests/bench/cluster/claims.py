"""Claims that get their volumes, and volumes that go with their claims."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from shared.informer import Informer
from shared.kubernetes import CLAIMS, PERSISTENT_VOLUMES
from shared.objects import Claim, PersistentVolume
from tests.bench.cluster.place import Place, place, until
from tests.bench.rows import Row, Tell
from tests.e2e import objects

_MANY: Final = 500
_AT_ONCE: Final = 20
_FEW: Final = 20
_SINGLE: Final = 8
_PATIENCE: Final = 240.0
_FILL: Final = 'for d in 0 1; do mkdir "$0/$d"; for f in 0 1 2 3 4; do head -c 4096 /dev/zero >"$0/$d/$f"; done; done'


class _Watched:
    """The claims and volumes of a namespace, as they are now, without asking for each."""

    def __init__(self, here: Place) -> None:
        self._namespace = here.case.namespace
        self.claims = Informer(here.api, CLAIMS, Claim, namespace=here.case.namespace)
        self._volumes = Informer(here.api, PERSISTENT_VOLUMES, PersistentVolume)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.claims.run())
            tasks.create_task(self._volumes.run())

    async def synced(self) -> None:
        await self.claims.synced.wait()
        await self._volumes.synced.wait()

    def bound(self) -> int:
        return sum(claim.status.phase == "Bound" for claim in self.claims.objects.values())

    def volumes(self) -> list[PersistentVolume]:
        """Those of the namespace's claims."""
        volumes = self._volumes.objects.values()
        return [one for one in volumes if one.spec.claim_ref and one.spec.claim_ref.namespace == self._namespace]

    async def until(self, condition: Callable[[], bool], *, what: str) -> None:
        async def answer() -> bool:
            return condition()

        await until(answer, what=what, within=_PATIENCE)


@asynccontextmanager
async def _watched(here: Place) -> AsyncIterator[_Watched]:
    watched = _Watched(here)
    task = asyncio.create_task(watched.run())
    try:
        await watched.synced()
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def many(tell: Tell) -> list[Row]:
    """500 claims at once until all have their volumes, beside POSTs of as many PersistentVolumes; and their end."""
    async with place("claims") as here, _watched(here) as watched:
        raw = await _posts(here)
        tell("claims")
        began = time.perf_counter()
        await _each(range(_MANY), lambda number: _claim(here, f"many-{number}"))
        await watched.until(lambda: len(watched.volumes()) == _MANY, what=f"{_MANY} volumes")
        made = time.perf_counter() - began
        await watched.until(lambda: watched.bound() == _MANY, what=f"{_MANY} claims bound")
        bound = time.perf_counter() - began
        tell("their end")
        began = time.perf_counter()
        await _each(range(_MANY), lambda number: _delete(here, f"many-{number}"))
        await watched.until(lambda: not watched.volumes(), what=f"{_MANY} volumes gone")
        gone = time.perf_counter() - began
    floors = [_MANY / raw]
    return [
        Row(
            name="k8s-claims",
            what=f"{_MANY} claims at once: PersistentVolumes made, beside plain POSTs of such",
            unit="/s",
            samples=[_MANY / made],
            floors=floors,
            times=2.5,
        ),
        Row(
            name="k8s-claims-bound",
            what=f"{_MANY} claims at once: Bound, which is what Kubernetes does of them",
            unit="/s",
            samples=[_MANY / bound],
            floors=floors,
        ),
        Row(
            name="k8s-claims-gone",
            what=f"{_MANY} claims deleted at once: their volumes gone",
            unit="/s",
            samples=[_MANY / gone],
        ),
    ]


async def _posts(here: Place) -> float:
    """Seconds of as many POSTs; what they made is taken away again."""
    names = [f"{here.case.namespace}-raw-{number}" for number in range(_MANY)]
    secret = ("secret", here.case.namespace)

    async def post(name: str) -> None:
        await here.api.create(PERSISTENT_VOLUMES, objects.volume(name, secret=secret, attributes={}))

    began = time.perf_counter()
    await _each(names, post)
    seconds = time.perf_counter() - began
    await _each(names, lambda name: here.api.delete(PERSISTENT_VOLUMES, name))

    async def none() -> bool:
        found = await here.api.list(PERSISTENT_VOLUMES, labels=f"case={here.case.namespace}")
        return not found["items"]

    await until(none, what="PersistentVolumes gone", step=1, within=_PATIENCE)
    return seconds


async def end(tell: Tell) -> list[Row]:
    """A volume with content whose claim is deleted, beside one that is retained; and 20 claims deleted at once."""
    async with place("end") as here, _watched(here) as watched:
        single, retained = list[float](), list[float]()
        for number in range(_SINGLE + 1):
            tell(f"{number}/{_SINGLE}")
            single.append(await _filled_and_deleted(here, watched, f"full-{number}"))
            retained.append(await _released(here, f"kept-{number}"))
        names = [f"few-{number}" for number in range(_FEW)]
        await _each(names, lambda name: _claim(here, name))
        await watched.until(lambda: watched.bound() == _FEW, what=f"{_FEW} claims bound")
        began = time.perf_counter()
        await _each(names, lambda name: _delete(here, name))
        await watched.until(lambda: not watched.volumes(), what=f"{_FEW} volumes gone")
        rate = _FEW / (time.perf_counter() - began)
    return [
        Row(
            name="k8s-delete",
            what="claim deleted → volume with 2 directories of 5 files gone, beside a retained one until Released",
            unit="s",
            samples=single[1:],
            floors=retained[1:],
        ),
        Row(name="k8s-delete-20", what=f"{_FEW} claims deleted at once: their volumes gone", unit="/s", samples=[rate]),
    ]


async def _filled_and_deleted(here: Place, watched: _Watched, name: str) -> float:
    """Seconds from the request to delete the claim until its volume is gone."""
    volume = await here.case.claim(name)
    await here.create(here.pod(name, {"data": name}))
    await here.started(name)
    await here.case.exec("sh", "-c", _FILL, "/data", pod=name)
    await here.delete(name)
    await here.gone(name)
    began = time.perf_counter()
    await _delete(here, name)
    await watched.until(lambda: all(one.metadata.name != volume for one in watched.volumes()), what=f"{volume} gone")
    return time.perf_counter() - began


async def _released(here: Place, name: str) -> float:
    """Seconds from the request to delete the claim of a retained volume until Kubernetes has noticed."""
    await here.case.static(name)
    volume = f"{here.case.namespace}-{name}"
    began = time.perf_counter()
    await _delete(here, name)

    async def released() -> bool:
        found = await here.api.get(PERSISTENT_VOLUMES, volume)
        return bool(found["status"]["phase"] == "Released")

    await until(released, what=f"{volume} released")
    seconds = time.perf_counter() - began
    await here.api.delete(PERSISTENT_VOLUMES, volume)
    return seconds


async def _claim(here: Place, name: str) -> None:
    claim = objects.claim(name, here.case.namespace, storage_class=here.case.namespace)
    await here.api.create(CLAIMS, claim, namespace=here.case.namespace)


async def _delete(here: Place, claim: str) -> None:
    await here.api.delete(CLAIMS, claim, namespace=here.case.namespace)


async def _each(names: Iterable[object], do: Callable[..., Awaitable[None]]) -> None:
    """For each of them, some at once."""
    rest = iter(names)

    async def some() -> None:
        for name in rest:
            await do(name)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(some())
