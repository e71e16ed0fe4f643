"""Volumes made, grown and deleted in a real file system, by the real client and its gateway."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from services.controller.quota import Quota
from shared.domain import GIB, Subpath
from shared.errors import AlreadyExists, Busy, CommandFailed, InUse, InvalidRequest, NotFound, OutOfRange
from shared.runner import run
from tests.integration.controlling import Controller, controlling, filesystem

_BURST = 30
PVC = "pvc-76d2afa7-d1c1-419a-b971-b99da0b2b89c"


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    async with controlling(filesystem(tmp_path)) as controller:
        yield controller


async def test_a_volume_is_a_directory_with_a_quota(controller: Controller) -> None:
    """Promise 3: reported when the file system says so; the file system is formatted when it is new."""
    volume = await controller.create("v", required=GIB + 1)

    assert volume.capacity == 2 * GIB
    assert (await controller.quota("v")).may_be(2 * GIB)
    assert await controller.at_root() == {"v"}


async def test_a_volume_without_a_capacity_has_no_quota(controller: Controller) -> None:
    """No wish, no limit."""
    assert (await controller.create("v", required=0)).capacity == 0
    assert await controller.quota("v") == Quota()
    assert await controller.at_root() == {"v"}


async def test_a_burst_asks_little_of_the_gateway(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five requests for each volume: nobody waits at the directories that all of them need."""
    await controller.create("first")
    asked: list[str] = []
    request = aiohttp.ClientSession.request

    def counted(session: aiohttp.ClientSession, method: str, url: URL, **rest: Any) -> Any:
        asked.append(method)
        return request(session, method, url, **rest)

    monkeypatch.setattr(aiohttp.ClientSession, "request", counted)

    await asyncio.gather(*(controller.create(f"v-{number}") for number in range(_BURST)))

    assert len(asked) <= 6 * _BURST, Counter(asked)


async def test_creating_twice_is_the_same_volume(controller: Controller) -> None:
    """CSI: idempotent, also after a restart; a volume that has grown is as large as it is."""
    first = await controller.create("v", required=GIB, limit=2 * GIB)
    controller.restarted()

    assert await controller.create("v", required=GIB, limit=2 * GIB) == first
    await controller.expand("v", required=3 * GIB)
    assert await controller.create("v", required=2 * GIB) == replace(first, capacity=3 * GIB)
    with pytest.raises(AlreadyExists):
        await controller.create("v", required=GIB, limit=2 * GIB)
    assert controller.bytes_allowed() == {3 * GIB}


@pytest.mark.parametrize("other", [{"required": 2 * GIB}, {"required": 0, "limit": GIB - 1}, {"path": "other"}])
async def test_another_volume_of_the_same_name_is_refused(controller: Controller, other: dict[str, Any]) -> None:
    """ALREADY_EXISTS, read back from the record after a restart; the volume stays as it is."""
    await controller.create("v", required=GIB)
    controller.restarted()

    with pytest.raises((AlreadyExists, OutOfRange)):
        await controller.create("v", **other)

    assert (await controller.quota("v")).may_be(GIB)
    assert await controller.at_root() == {"v"}


@pytest.mark.parametrize(
    "path", ["a b/c", "quo'te\"", "$(touch x)", "`x`", "a|b", "ünïcode", "%2e%2e", "-x", "x" * 200, "?#&;", "a\\b"]
)
async def test_names_are_taken_literally(controller: Controller, path: str) -> None:
    """Promise 21, at create and at delete."""
    await controller.create(f"v-{path}", path=path)
    assert (await controller.quota(path)).may_be(GIB)

    assert await controller.volumes.delete(controller.fs, f"v-{path}")
    assert await controller.at_root() <= {"a b"}


@pytest.mark.parametrize("path", ["", ".juicefs-csi", ".juicefs-csi/volumes/x", ".trash/x"])
async def test_a_volume_can_not_be_what_the_file_system_keeps_for_itself(controller: Controller, path: str) -> None:
    """Promise 5: neither the root nor records nor trash can be a volume, so none of it can be deleted as one."""
    with pytest.raises(InvalidRequest):
        await controller.volumes.create(controller.fs, "v", path=Subpath(text=path), required=GIB, limit=0)


async def test_deleting_removes_directory_quota_and_record(controller: Controller) -> None:
    """Twice is OK; afterwards the name is free for another volume."""
    await controller.create("v")
    await controller.make("v/some/tree")

    assert await controller.volumes.delete(controller.fs, "v")
    assert not await controller.volumes.delete(controller.fs, "v")

    assert await controller.at_root() == set()
    assert (await controller.create("v", required=2 * GIB)).capacity == 2 * GIB
    assert (await controller.quota("v")).may_be(2 * GIB)


async def test_forgetting_keeps_the_directory(controller: Controller) -> None:
    """It belongs to somebody else too, and is nobody's to delete any more."""
    await controller.create("v", path="place/v")
    await controller.make("place/v/tree")
    for _ in range(2):
        await controller.volumes.forget(controller.fs, "v")

    assert not await controller.volumes.delete(controller.fs, "v")
    assert await controller.at_root() == {"place"}


@pytest.mark.parametrize("name", ["data", f"{PVC}x", f"x{PVC}", "pvc-1", "."])
async def test_what_was_not_created_here_is_not_deleted(controller: Controller, name: str) -> None:
    """Promise 5: a static volume's data stays, whatever its id."""
    await controller.create("v")
    await controller.make("data" if name == "." else name)
    before = await controller.at_root()

    assert not await controller.volumes.delete(controller.fs, name)

    assert await controller.at_root() == before


async def test_a_volume_of_the_earlier_driver_is_deleted(controller: Controller) -> None:
    """It kept no records; its directory has the name that it gave."""
    await controller.create("v")
    await controller.make(PVC)

    assert await controller.volumes.get(controller.fs, PVC)
    assert await controller.volumes.delete(controller.fs, PVC)

    assert await controller.at_root() == {"v"}


async def test_deleting_in_a_file_system_that_is_not_one_is_done(controller: Controller) -> None:
    """Nothing is formatted, so no volume can be there, and none is made by asking."""
    assert not await controller.volumes.delete(controller.fs, PVC)
    assert await controller.volumes.get(controller.fs, "v") is None


async def test_a_file_system_that_was_wiped_is_made_again(controller: Controller, tmp_path: Path) -> None:
    """Memory is a cache: what was formatted once need not be there for ever."""
    await controller.create("v")
    await controller.gateways.close()
    for left in tmp_path.glob("meta.db*"):
        left.unlink()
    (tmp_path / "objects").rename(tmp_path / "old")

    with pytest.raises(CommandFailed, match="not formatted"):
        await controller.create("v")
    assert (await controller.create("v")).capacity == GIB


async def test_a_shared_directory_goes_with_the_last_volume(controller: Controller) -> None:
    """Behaviour.md 1.11: path patterns may give two claims one directory."""
    await controller.create("a", path="team/x")
    await controller.create("b", path="team/x")
    await controller.create("c", path="team/y")

    assert await controller.volumes.delete(controller.fs, "a")
    assert (await controller.quota("team/x")).may_be(GIB)
    assert await controller.volumes.delete(controller.fs, "b")
    with pytest.raises(CommandFailed, match="no such file"):
        await controller.quota("team/x")
    assert (await controller.quota("team/y")).may_be(GIB)


@pytest.mark.parametrize(("outer", "inner"), [("team", "team/x/y"), ("a", "a/x"), ("pvc", "pvc/pvc")])
async def test_a_directory_that_holds_another_volume_is_not_deleted(
    controller: Controller, outer: str, inner: str
) -> None:
    """Promise 5: no volume goes with another; what lies in another goes with that."""
    await controller.create("a", path=outer)
    await controller.create("b", path=inner)

    with pytest.raises(InUse, match="volume b"):
        await controller.restarted().delete(controller.fs, "a")
    assert (await controller.quota(inner)).may_be(GIB)
    assert await controller.volumes.delete(controller.fs, "b")
    assert await controller.volumes.delete(controller.fs, "a")


async def test_expanding_sets_the_quota(controller: Controller) -> None:
    """Rounded up to GiB, and read back."""
    await controller.create("v")

    assert await controller.volumes.expand(controller.fs, "v", required=2 * GIB - 1, limit=0) == 2 * GIB
    assert (await controller.quota("v")).may_be(2 * GIB)


async def test_a_volume_never_gets_smaller(controller: Controller) -> None:
    """CSI: a volume that is large enough is a success; one that is too large for the limit is not."""
    await controller.create("v", required=3 * GIB)

    assert await controller.volumes.expand(controller.fs, "v", required=2 * GIB, limit=0) == 3 * GIB
    with pytest.raises(OutOfRange):
        await controller.volumes.expand(controller.fs, "v", required=GIB, limit=2 * GIB)
    assert (await controller.quota("v")).may_be(3 * GIB)


async def test_a_late_smaller_expansion_shrinks_nothing(controller: Controller) -> None:
    """Exact also where the client prints both as 1.5 TiB; after a restart, and whatever the limit."""
    await controller.create("v", required=1536 * GIB)
    assert await controller.expand("v", required=1538 * GIB) == 1538 * GIB
    controller.restarted()

    assert await controller.expand("v", required=1537 * GIB) == 1538 * GIB
    with pytest.raises(OutOfRange, match=str(1538 * GIB)):
        await controller.expand("v", required=1537 * GIB, limit=1537 * GIB)
    assert controller.bytes_allowed() == {1538 * GIB}


async def test_two_controllers_that_expand_one_volume(controller: Controller) -> None:
    """The larger one stays, whoever is last: two controllers know each other by the file system only."""
    await controller.create("v")
    for size in range(2 * GIB, 10 * GIB, 2 * GIB):
        one, other = controller.restarted(), controller.restarted()
        await asyncio.gather(
            one.expand(controller.fs, "v", required=size + GIB, limit=0),
            other.expand(controller.fs, "v", required=size, limit=0),
        )
        assert controller.bytes_allowed() == {size + GIB}


async def test_a_quota_that_is_larger_than_we_know_stays(controller: Controller) -> None:
    """Raised by hand, or by the earlier driver, which kept no records: as the client prints it."""
    for name in ("v", PVC):
        await controller.create("v") if name == "v" else await controller.make(name)
        await run(controller.juicefs.quota_set(controller.fs, Subpath(text=name), gib=4), timeout=20)
        assert await controller.expand(name, required=3 * GIB) == 4 * GIB
        with pytest.raises(OutOfRange):
            await controller.expand(name, required=3 * GIB, limit=3 * GIB)
        assert await controller.expand(name, required=5 * GIB) == 5 * GIB
        assert await controller.expand(name, required=3 * GIB) == 5 * GIB


async def test_the_next_volume_of_a_name_begins_anew(controller: Controller) -> None:
    """What the last one had grown to goes with it."""
    await controller.create("v")
    await controller.expand("v", required=3 * GIB)
    assert await controller.volumes.delete(controller.fs, "v")

    await controller.create("v")
    assert (await controller.create("v")).capacity == GIB
    assert controller.bytes_allowed() == {GIB}


async def test_a_static_volume_is_not_expanded(controller: Controller) -> None:
    """Its capacity is nobody's promise."""
    await controller.create("v")
    await controller.make("data")

    with pytest.raises(NotFound, match="data"):
        await controller.volumes.expand(controller.fs, "data", required=GIB, limit=0)

    assert await controller.quota("data") == Quota()


async def test_the_second_call_for_a_volume_is_told_so(controller: Controller) -> None:
    """ABORTED, without waiting; other volumes are not concerned."""
    first = asyncio.create_task(controller.create("v"))
    await asyncio.sleep(0)

    with pytest.raises(Busy):
        await controller.volumes.delete(controller.fs, "v")
    await asyncio.gather(first, controller.create("w"))
