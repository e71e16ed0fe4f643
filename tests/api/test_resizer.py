"""Claims that ask for more, on a real API server and a real file system."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.api.juicefs.v1 import VolumeExpanded
from shared.domain import GIB
from shared.kubernetes import CLAIMS, PERSISTENT_VOLUMES, SECRETS
from tests.api.claiming import Object, Stage, counted, eventually, staged
from tests.api.test_provisioner import static
from tests.api_server import ApiServer

pytestmark = pytest.mark.timeout(120)
REFUSED = {"type": "ModifyingVolume", "status": "True", "message": "somebody else's"}


@pytest.fixture
async def served(server: ApiServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(server, tmp_path) as stage:
        await stage.make_secret()
        async with stage.serving():
            yield stage


async def ask(stage: Stage, name: str, size: str) -> None:
    body = {"spec": {"resources": {"requests": {"storage": size}}}}
    await stage.api.patch(CLAIMS, stage.of(name), body, namespace="default")


async def claim_of(stage: Stage, name: str) -> Object:
    return await stage.api.get(CLAIMS, stage.of(name), namespace="default")


async def grown(stage: Stage, name: str, size: str) -> Object:
    """The claim, as soon as it has so much."""

    async def has() -> Any:
        claim = await claim_of(stage, name)
        return claim["status"]["capacity"]["storage"] == size and claim

    return await eventually(has)


async def test_a_claim_that_asks_for_more_gets_it(served: Stage) -> None:
    """Behaviour.md 12, dynamic_expand: file system, PersistentVolume, claim; in this order, and nothing lingers."""
    await served.make_class()
    name = await served.bound("a")
    await ask(served, "a", "2500Mi")

    claim = await grown(served, "a", "3Gi")
    assert claim["status"].get("conditions", []) == []
    assert "allocatedResourceStatuses" not in claim["status"]
    assert (await served.volume(name))["spec"]["capacity"] == {"storage": "3Gi"}
    assert (await served.controller.quota(name)).may_be(3 * GIB)
    assert name in await served.event(served.of("a"), "Resizing")
    assert "3Gi" in await served.event(served.of("a"), "VolumeResizeSuccessful")
    assert served.said[-1] == VolumeExpanded(capacity_bytes=3 * GIB)


async def test_expanding_takes_few_requests(served: Stage) -> None:
    """No list, and no read but of the Secret."""
    await served.make_class()
    await served.bound("a")
    with counted() as requests:
        await ask(served, "a", "2Gi")
        await served.event(served.of("a"), "VolumeResizeSuccessful")

    assert requests == {
        "get secrets": 1,
        "patch persistentvolumes": 1,
        "patch persistentvolumeclaims": 2 + 1,  # the test's own
    }


async def test_what_was_asked_while_nobody_was_there_is_found(served: Stage) -> None:
    """Level-triggered; conditions of others stay as they are."""
    await served.make_class()
    await served.bound("a")
    others = {"status": {"conditions": [REFUSED]}}
    await served.api.patch(CLAIMS, served.of("a"), others, namespace="default", subresource="status")
    await ask(served, "a", "2Gi")
    claim = await grown(served, "a", "2Gi")
    assert [one["type"] for one in claim["status"]["conditions"]] == ["ModifyingVolume"]


async def test_a_failure_is_said_and_tried_again(served: Stage) -> None:
    """The Secret is away for a while: Event, condition, and then a success that clears it."""
    other = await served.make_secret(served.of("grow"))
    await served.make_class({"csi.storage.k8s.io/controller-expand-secret-name": other})
    await served.bound("a")
    await served.api.delete(SECRETS, other, namespace="default")
    await ask(served, "a", "2Gi")

    said = await served.event(served.of("a"), "VolumeResizeFailed")
    assert f"Secret default/{other} does not exist" in said
    claim = await claim_of(served, "a")
    assert {one["type"] for one in claim["status"]["conditions"]} == {"Resizing", "ControllerResizeError"}
    assert claim["status"]["capacity"] == {"storage": "1Gi"}

    await served.make_secret(other)
    assert (await grown(served, "a", "2Gi"))["status"].get("conditions", []) == []


async def test_a_volume_without_an_expansion_secret_says_what_to_set(served: Stage) -> None:
    """Promise 25; it can't be had, and the claim's status says so."""
    keys = {f"csi.storage.k8s.io/controller-expand-secret-{part}": "" for part in ("name", "namespace")}
    await served.make_class(keys)
    await served.bound("a")
    await ask(served, "a", "2Gi")

    assert "no controllerExpandSecretRef" in await served.event(served.of("a"), "VolumeResizeFailed")
    status = (await claim_of(served, "a"))["status"]
    assert status["allocatedResourceStatuses"] == {"storage": "ControllerResizeInfeasible"}


async def test_a_static_volume_does_not_grow(served: Stage) -> None:
    """It has no capacity of its own."""
    await served.make_class()
    await served.volume(await served.claim("first"))
    volume = static(
        served, served.of("static"), controllerExpandSecretRef={"name": served.name, "namespace": "default"}
    )
    claim = await served.claim("a")
    volume["spec"]["claimRef"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": served.of("a"),
        "namespace": "default",
        "uid": claim[4:],
    }
    made = await served.api.create(PERSISTENT_VOLUMES, volume)
    await served.bind("a", made)
    await ask(served, "a", "2Gi")

    assert "was not created by this driver" in await served.event(served.of("a"), "VolumeResizeFailed")


async def test_a_smaller_wish_after_a_failure_is_met(served: Stage) -> None:
    """RecoverVolumeExpansionFailure: what is asked for now counts."""
    other = await served.make_secret(served.of("grow"))
    await served.make_class({"csi.storage.k8s.io/controller-expand-secret-name": other})
    name = await served.bound("a")
    await served.api.delete(SECRETS, other, namespace="default")
    await ask(served, "a", "9Gi")
    await served.event(served.of("a"), "VolumeResizeFailed")
    await ask(served, "a", "2Gi")
    await served.make_secret(other)

    await grown(served, "a", "2Gi")
    assert (await served.controller.quota(name)).may_be(2 * GIB)


async def test_many_grow_at_once(served: Stage) -> None:
    """Each by itself."""
    await served.make_class()
    for number in range(8):
        await served.bound(f"c{number}")
    await asyncio.gather(*(ask(served, f"c{number}", "2Gi") for number in range(8)))
    await asyncio.gather(*(grown(served, f"c{number}", "2Gi") for number in range(8)))
