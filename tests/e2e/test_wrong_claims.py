"""Claims that can't be served: `kubectl describe pvc` says why, and what to change."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from shared.kubernetes import PERSISTENT_VOLUMES
from tests.e2e import objects
from tests.e2e.case import Case


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A StorageClass with these parameters, and a claim with this spec, get this answer."""

    words: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)


WRONG = {
    "selector": Wrong(spec={"selector": {"matchLabels": {"a": "b"}}}, words=("claim Selector is not supported",)),
    "block mode": Wrong(spec={"volumeMode": "Block"}, words=("volumeMode Block is not supported",)),
    "read only": Wrong(spec={"accessModes": ["ReadOnlyMany"]}, words=("ReadOnlyMany", "static PersistentVolume")),
    "data source": Wrong(
        spec={"dataSource": {"kind": "PersistentVolumeClaim", "name": "other"}}, words=("dataSource",)
    ),
    "root": Wrong(parameters={"pathPattern": "/${.pvc.labels.none}"}, words=("pathPattern", "root of the file system")),
    "dots": Wrong(parameters={"pathPattern": "../${.pvc.name}"}, words=("pathPattern", "'..'")),
    "dots in an annotation": Wrong(
        parameters={"pathPattern": "a/${.pvc.annotations.up}"},
        spec={"annotations": {"up": ".."}},
        words=("pathPattern", "'..'"),
    ),
    "records": Wrong(parameters={"pathPattern": ".juicefs-csi/volumes"}, words=(".juicefs-csi",)),
    "delay": Wrong(parameters={"juicefs/mount-delete-delay": "soon"}, words=("juicefs/mount-delete-delay",)),
    "option": Wrong(parameters={"mountOptions": "a=b=c"}, words=("mount options", "one '=' between")),
}


@pytest.mark.parametrize("name", WRONG)
async def test_refused_claim(case: Case, name: str) -> None:
    """The cause stands in the claim's events, and no volume is made."""
    wrong = WRONG[name]
    await case.storage_class(wrong.parameters)
    await case.pending_claim(**wrong.spec)

    await case.described("pvc", "data", "ProvisioningFailed", *wrong.words)
    volumes = (await case.cluster.api.list(PERSISTENT_VOLUMES))["items"]
    assert case.namespace not in [volume["spec"].get("claimRef", {}).get("namespace") for volume in volumes]


async def test_storage_class_without_secrets(case: Case) -> None:
    """It says which parameters are missing."""
    await case.cluster.apply(objects.storage_class(case.namespace, {}, case=case.namespace))
    await case.pending_claim()

    await case.described("pvc", "data", "names no Secret", "csi.storage.k8s.io/provisioner-secret-name")


async def test_path_of_another_claim(case: Case) -> None:
    """Two StorageClasses can't lead to one directory: the other volume is named."""
    volume = await case.dynamic({"pathPattern": "taken"})
    other = await case.storage_class({"pathPattern": "taken/below"}, suffix="-other")
    await case.pending_claim("other", storage_class=other)

    await case.described("pvc", "other", "ProvisioningFailed", "taken/below", volume)


async def test_secret_of_claim_missing(case: Case) -> None:
    """The Secret is named, and when it comes the claim is served."""
    parameters = objects.secret_parameters("late", case.namespace)
    await case.storage_class(parameters)
    await case.pending_claim()
    await case.described("pvc", "data", "ProvisioningFailed", "late", case.namespace)

    await case.secret("late")

    await case.bound("data")


MALFORMED: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "no name": ({"name": None}, ("secret key name is empty",)),
    "no engine": ({"metaurl": None}, ("secret key metaurl is empty",)),
    "engine unreachable": ({"metaurl": "redis://127.0.0.1:1/1"}, ("META_UNREACHABLE",)),
    "no such host": ({"metaurl": "redis://nowhere.invalid/1"}, ("META_UNREACHABLE", "nowhere.invalid")),
    "wrong password": ({"metaurl": f"redis://:wrong@{objects.REDIS}/1"}, ("META_AUTH",)),
    "wrong name": ({"name": "Not A Name"}, ("secret key name",)),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_secret_of_claim(case: Case, name: str) -> None:
    """The claim's events say what is wrong with the file system's Secret; once it is right the claim is served."""
    changes, words = MALFORMED[name]
    await case.storage_class()
    await case.secret("secret", **changes)
    await case.pending_claim()
    await case.described("pvc", "data", "ProvisioningFailed", *words)

    await case.secret("secret")

    await case.bound("data")
