"""What happens, from a resource version on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from secrets import token_hex
from typing import Any

import msgspec
import pytest

from shared.errors import NotReady
from shared.kubernetes import CONFIG_MAPS, Event, Gone, Kubernetes
from tests.api_server import ApiServer

Object = dict[str, Any]


async def made(api: Kubernetes) -> Object:
    """A ConfigMap."""
    return await api.create(CONFIG_MAPS, {"metadata": {"name": f"t-{token_hex(4)}"}}, namespace="default")


async def first(api: Kubernetes, since: str, wanted: str) -> tuple[str, Object]:
    """The first event about this ConfigMap after a resource version."""
    async with aclosing(api.watch(CONFIG_MAPS, namespace="default", since=since)) as events:
        async for event in events:
            found = msgspec.json.decode(event.object)
            if found["metadata"]["name"] == wanted:
                return event.type, found
    raise AssertionError


async def test_a_watch_goes_on_from_a_resource_version(api: Kubernetes) -> None:
    """What happened after it is told, in order, and nothing before."""
    body = await made(api)
    name, since = body["metadata"]["name"], body["metadata"]["resourceVersion"]
    await api.patch(CONFIG_MAPS, name, {"data": {"k": "v"}}, namespace="default")
    await api.delete(CONFIG_MAPS, name, namespace="default")

    what, found = await first(api, since, name)
    assert (what, found["data"]) == ("MODIFIED", {"k": "v"})
    assert (await first(api, found["metadata"]["resourceVersion"], name))[0] == "DELETED"


async def test_a_watch_has_bookmarks_and_ends(api: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time is over, the last event is a bookmark to go on from."""
    monkeypatch.setattr("shared.kubernetes._LIFE", 5)
    since = (await made(api))["metadata"]["resourceVersion"]
    begun = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        watch = api.watch(CONFIG_MAPS, since=since, labels="a=nothing", on_open=begun.set)
        collecting = tasks.create_task(_all(watch))
        await begun.wait()
        await made(api)

    events = collecting.result()
    assert {event.type for event in events} == {"BOOKMARK"}
    assert int(msgspec.json.decode(events[-1].object)["metadata"]["resourceVersion"]) > int(since)


async def _all(watch: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in watch]


async def test_a_watch_from_too_long_ago_is_gone(api: Kubernetes) -> None:
    with pytest.raises(Gone):
        await anext(api.watch(CONFIG_MAPS, since="1"))


async def test_a_list_that_is_compacted_meanwhile_is_gone(
    server: ApiServer, api: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than telling half of it."""
    monkeypatch.setattr("shared.kubernetes._PAGE", 1)
    for _ in range(3):
        await made(api)
    async with aclosing(api.pages(CONFIG_MAPS)) as pages:
        await anext(pages)
        await made(api)
        server.compact()
        server.kill()  # it remembers the page, too
        server.start()
        with pytest.raises(Gone):
            await anext(pages)


async def test_a_watch_that_breaks_is_not_ready(server: ApiServer, api: Kubernetes) -> None:
    since = (await made(api))["metadata"]["resourceVersion"]
    watch = api.watch(CONFIG_MAPS, since=since, on_open=server.kill)

    with pytest.raises(NotReady, match=r"away \(connection "):
        await anext(watch)


async def test_a_silent_watch_is_broken(server: ApiServer) -> None:
    """A connection that nobody closes is not waited on for ever."""
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig), silence=0.5) as api:
        since = (await made(api))["metadata"]["resourceVersion"]
        async with aclosing(api.watch(CONFIG_MAPS, since=since)) as events:
            with pytest.raises(NotReady, match=r"away \(silent for 0.5 s\)"):
                await anext(events)
