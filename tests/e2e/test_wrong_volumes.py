"""Volumes that can't be mounted: `kubectl describe pod` of the workload says why, and what to change."""

import pytest

from tests.e2e import objects
from tests.e2e.case import Case

MALFORMED: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "no name": ({"name": None}, ("secret key name is empty",)),
    "no engine": ({"metaurl": None}, ("secret key metaurl is empty",)),
    "engine unreachable": ({"metaurl": "redis://127.0.0.1:1/1"}, ("META_UNREACHABLE",)),
    "wrong password": ({"metaurl": f"redis://:wrong@{objects.REDIS}/1"}, ("META_AUTH",)),
    "envs": ({"envs": "[1]"}, ("secret key envs",)),
    "format options": ({"format-options": "compress="}, ("secret key format-options",)),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_secret(case: Case, name: str) -> None:
    """The pod's events name the key or the class of the failure; once it is right the pod starts."""
    changes, words = MALFORMED[name]
    await case.static()
    await case.secret("secret", **changes)
    await case.pod()
    await case.described("pod", "app", "FailedMount", *words)

    await case.secret("secret")

    await case.ready(within=150)


@pytest.mark.parametrize("when", ["missing", "renamed"])
async def test_secret_missing(case: Case, when: str) -> None:
    """The Secret that the volume names is named, and when it appears the pod starts."""
    await case.static()
    if when == "renamed":
        await case.secret("renamed")
    await case.remove_secret()
    await case.pod()
    await case.described("pod", "app", "FailedMount", 'secrets "secret" not found')

    await case.secret()

    await case.ready(within=150)


ATTRIBUTES = {
    "quantity": ({"juicefs/mount-cpu-limit": "lots"}, ("juicefs/mount-cpu-limit",)),
    "labels": ({"juicefs/mount-labels": "[1]"}, ("juicefs/mount-labels",)),
    "delay": ({"juicefs/mount-delete-delay": "soon"}, ("juicefs/mount-delete-delay",)),
    "option": ({"mountOptions": "a=b=c"}, ("mount options",)),
    "dots": ({"subPath": "../up"}, ("subPath",)),
    "image": ({"juicefs/mount-image": "juicefs-csi-mount:none"}, ("juicefs-csi-mount:none",)),
    "cache pvc": ({"juicefs/mount-cache-pvc": "nowhere"}, ("nowhere",)),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
async def test_refused_attributes(case: Case, name: str) -> None:
    """The attribute that is wrong is named in the pod's events."""
    attributes, words = ATTRIBUTES[name]
    await case.static(attributes=attributes)
    await case.pod()

    await case.described("pod", "app", "FailedMount", *words, within=100)


async def test_two_volumes_with_one_handle(case: Case) -> None:
    """Nothing is mounted by chance: both PersistentVolumes are named."""
    handle = f"{case.namespace}-twice"
    await case.static("one", {"subPath": "one"}, handle=handle)
    await case.static("two", {"subPath": "two"}, handle=handle)
    await case.pod(claims={"data": "two"})

    await case.described("pod", "app", "FailedMount", f"{case.namespace}-one", f"{case.namespace}-two")


async def test_propagation_not_set(case: Case) -> None:
    """A pod without mountPropagation works; that it can't be healed by rebind is no matter until it has to be."""
    await case.static()
    await case.running(propagation="None")

    await case.write("/data/out.txt", "written")
