"""Events as `kubectl describe` finds them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import pytest

from shared.kubernetes import CLAIMS, EVENTS, NAMESPACES, PERSISTENT_VOLUMES, Kubernetes
from shared.recorder import Recorder, Reference
from tests.api_server import ApiServer
from tests.waiting import until


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[Recorder]:
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def recorder(api: Kubernetes) -> AsyncIterator[Recorder]:
    async with running(Recorder(api, component="csi.juicefs.com", host="n1")) as recorder:
        yield recorder


@pytest.fixture
async def claim(api: Kubernetes) -> Reference:
    """A claim in a namespace of its own."""
    name = f"t-{token_hex(4)}"
    await api.create(NAMESPACES, {"metadata": {"name": name}})
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    made = await api.create(CLAIMS, {"metadata": {"name": "c"}, "spec": spec}, namespace=name)
    return about(made, kind="PersistentVolumeClaim")


def about(made: dict[str, Any], *, kind: str) -> Reference:
    metadata = made["metadata"]
    return Reference(
        kind=kind,
        api_version="v1",
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        uid=metadata["uid"],
    )


async def events_of(api: Kubernetes, about: Reference, *, count: int = 1) -> list[dict[str, Any]]:
    """As `kubectl describe` asks for them, once they have been said so many times in all."""
    fields = f"involvedObject.uid={about.uid},involvedObject.name={about.name}"
    async with asyncio.timeout(10):
        while True:
            found = (await api.list(EVENTS, namespace=about.namespace, fields=fields))["items"]
            if sum(event["count"] for event in found) >= count:
                return list(found)


async def test_an_event_of_an_object_elsewhere(api: Kubernetes, recorder: Recorder, claim: Reference) -> None:
    """It is in the object's namespace, under a name made of the object's, with who said it."""
    recorder.say(claim, reason="MountFailed", message="META_AUTH: no", is_warning=True)

    (event,) = await events_of(api, claim)
    assert event["metadata"]["namespace"] == claim.namespace
    assert event["metadata"]["name"].startswith("c.")
    assert event["involvedObject"]["uid"] == claim.uid
    assert event["involvedObject"]["kind"] == "PersistentVolumeClaim"
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "MountFailed", "META_AUTH: no")
    assert event["source"] == {"component": "csi.juicefs.com", "host": "n1"}
    assert (event["reportingComponent"], event["reportingInstance"]) == ("csi.juicefs.com", "n1")
    assert event["firstTimestamp"] == event["lastTimestamp"]


async def test_an_object_without_a_namespace(api: Kubernetes, recorder: Recorder) -> None:
    """Its events are in `default`, as Kubernetes has it."""
    source = {"csi": {"driver": "d", "volumeHandle": "h"}, "capacity": {"storage": "1Gi"}}
    body = {"metadata": {"name": f"t-{token_hex(4)}"}, "spec": source | {"accessModes": ["ReadWriteMany"]}}
    volume = about(await api.create(PERSISTENT_VOLUMES, body), kind="PersistentVolume")
    recorder.say(volume, reason="VolumeFailedDelete", message="busy")

    (event,) = await events_of(api, volume)
    assert event["metadata"]["namespace"] == "default"
    assert event["type"] == "Normal"


async def test_the_same_again_only_counts(api: Kubernetes, recorder: Recorder, claim: Reference) -> None:
    """Whether it waits still, or was said before."""
    for _ in range(3):
        recorder.say(claim, reason="MountFailed", message="no")
    await events_of(api, claim, count=3)
    recorder.say(claim, reason="MountFailed", message="no")

    (event,) = await events_of(api, claim, count=4)
    assert event["count"] == 4


async def test_other_words_are_another_event(api: Kubernetes, recorder: Recorder, claim: Reference) -> None:
    recorder.say(claim, reason="MountFailed", message="no")
    recorder.say(claim, reason="MountFailed", message="never")
    recorder.say(claim, reason="MountReady", message="no")

    assert len(await events_of(api, claim, count=3)) == 3


async def test_after_ten_minutes_it_is_another_event(api: Kubernetes, recorder: Recorder, claim: Reference) -> None:
    recorder.say(claim, reason="MountFailed", message="no")
    await until(lambda: recorder._said)
    for said in recorder._said.values():
        said.at -= 600
    recorder.say(claim, reason="MountFailed", message="no")

    assert len(await events_of(api, claim, count=2)) == 2


async def test_an_event_that_is_gone_is_made_again(api: Kubernetes, recorder: Recorder, claim: Reference) -> None:
    """Kubernetes forgets Events after an hour."""
    recorder.say(claim, reason="MountFailed", message="no")
    (event,) = await events_of(api, claim)
    await api.delete(EVENTS, event["metadata"]["name"], namespace=claim.namespace)
    recorder.say(claim, reason="MountFailed", message="no")

    assert (await events_of(api, claim))[0]["count"] == 1


async def test_one_that_is_refused_does_not_silence_others(
    api: Kubernetes, recorder: Recorder, claim: Reference
) -> None:
    nowhere = Reference(kind="Pod", api_version="v1", name="p", namespace="no-such-namespace", uid="u")
    recorder.say(nowhere, reason="MountFailed", message="no")
    recorder.say(claim, reason="MountFailed", message="no")

    await events_of(api, claim)
    assert recorder.dropped == 1


async def test_odd_names_and_long_messages(api: Kubernetes, recorder: Recorder) -> None:
    """An object's name need not be one that an Event can have; a message has its limit."""
    odd = Reference(kind="Node", api_version="v1", name="system:node:N_1..x" + "y" * 300, uid=token_hex(8))
    recorder.say(odd, reason="MountFailed", message="n" * 5000)

    (event,) = await events_of(api, odd)
    assert event["metadata"]["name"].startswith("system-node-n-1")
    assert len(event["message"]) == 1024


async def test_said_while_the_api_server_is_away(server: ApiServer, api: Kubernetes, claim: Reference) -> None:
    """Kept, counted, and sent when it is back."""
    async with running(Recorder(api, component="csi.juicefs.com")) as recorder:
        server.kill()
        recorder.say(claim, reason="MountFailed", message="no")
        await until(lambda: recorder._is_away)
        recorder.say(claim, reason="MountFailed", message="no")
        server.start()

        (event,) = await events_of(api, claim, count=2)
        assert event["count"] == 2


async def test_last_words(api: Kubernetes, claim: Reference) -> None:
    """What was said just before the end is sent."""
    recorder = Recorder(api, component="csi.juicefs.com")
    task = asyncio.create_task(recorder.run())
    await until(lambda: recorder._something._waiters)
    recorder.say(claim, reason="MountFailed", message="no")
    task.cancel()
    await asyncio.wait({task})

    assert len(await events_of(api, claim)) == 1


async def test_no_more_than_a_thousand_wait(api: Kubernetes, claim: Reference) -> None:
    """While nothing can be sent, memory is bounded, and what was dropped is counted."""
    recorder = Recorder(api, component="csi.juicefs.com")
    for number in range(1500):
        recorder.say(claim, reason="MountFailed", message=f"no {number}")

    assert (recorder.dropped, len(recorder._waiting)) == (500, 1000)
