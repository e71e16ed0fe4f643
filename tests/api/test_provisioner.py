"""Claims on a real API server, and what becomes of them in a real file system."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.api.juicefs.v1 import VolumeCreated, VolumeDeleted
from shared.domain import GIB
from shared.errors import NotReady
from shared.kubernetes import CLAIMS, NODES, PERSISTENT_VOLUMES, SECRETS, Kind, Kubernetes
from tests.api.claiming import MARK, Stage, counted, eventually, staged
from tests.api_server import ApiServer
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


@pytest.fixture
async def stage(server: ApiServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(server, tmp_path) as stage:
        yield stage


@pytest.fixture
async def served(stage: Stage) -> AsyncIterator[Stage]:
    """With a Secret, and a controller that works."""
    await stage.make_secret()
    async with stage.serving():
        yield stage


async def test_a_claim_gets_its_volume(served: Stage) -> None:
    """Behaviour.md 1.11, field by field; capacity in whole GiB."""
    await served.make_class({"juicefs/clean-cache": "true"}, more={"mountOptions": ["cache-size=100, enable-xattr"]})
    name = await served.claim("a", size="1500Mi", labels={"app": "x"})

    volume = await served.volume(name)

    metadata, spec = volume["metadata"], volume["spec"]
    claim = await served.api.get(CLAIMS, served.of("a"), namespace="default")
    assert metadata["annotations"]["pv.kubernetes.io/provisioned-by"] == served.driver
    assert FINALIZER in metadata["finalizers"]
    assert spec["claimRef"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "default",
        "name": served.of("a"),
        "uid": claim["metadata"]["uid"],
        "resourceVersion": spec["claimRef"]["resourceVersion"],
    }
    assert spec["capacity"] == {"storage": "2Gi"}
    assert (spec["accessModes"], spec["volumeMode"]) == (["ReadWriteMany"], "Filesystem")
    assert (spec["persistentVolumeReclaimPolicy"], spec["storageClassName"]) == ("Delete", served.name)
    assert spec["mountOptions"] == ["cache-size=100", "enable-xattr"]
    assert "nodeAffinity" not in spec
    csi, ref = spec["csi"], {"name": served.name, "namespace": "default"}
    assert (csi["driver"], csi["volumeHandle"], csi["fsType"]) == (served.driver, name, "juicefs")
    assert (csi["nodePublishSecretRef"], csi["controllerExpandSecretRef"]) == (ref, ref)
    attributes = csi["volumeAttributes"]
    assert (attributes["subPath"], attributes["capacity"]) == (name, str(2 * GIB))
    assert attributes["juicefs/clean-cache"] == "true"
    assert attributes["csi.storage.k8s.io/provisioner-secret-name"] == served.name


async def test_its_directory_is_there_with_its_quota(served: Stage) -> None:
    """Promise 3; told on the claim and on the bus."""
    await served.make_class()
    name = await served.claim("a", size="3Gi")
    await served.volume(name)

    assert await served.directories() == {name}
    assert (await served.controller.quota(name)).may_be(3 * GIB)
    assert name in await served.event(served.of("a"), "Provisioning")
    assert name in await served.event(served.of("a"), "ProvisioningSucceeded")
    assert served.said == [VolumeCreated(capacity_bytes=3 * GIB)]


async def test_a_released_volume_goes_with_its_directory(served: Stage) -> None:
    """Reclaim Delete; no list of anything, and as few requests as can be."""
    await served.make_class()
    name = await served.bound("a")
    await served.controller.make(f"{name}/tree")
    await served.unclaim("a")
    await served.unprotect(name)
    with counted() as requests:
        await served.set_phase(name, "Released")
        await served.gone(name)

    assert await served.directories() == await served.records() == set()
    assert served.said[-1] == VolumeDeleted()
    assert requests["get secrets"] == requests["delete persistentvolumes"] == 1
    assert requests["patch persistentvolumes"] == 1 + 1  # the test's own
    assert not [request for request in requests if "list" in request or "pages" in request]


PATTERN = "${.pvc.namespace}-${.pvc.name}-${.PVC.labels.app.example.com/name}-${.pvc.annotations.note}"


async def test_a_path_pattern_names_the_directory(served: Stage) -> None:
    """Behaviour.md 12, path_pattern_in_storage_class; and it goes with the claim."""
    await served.make_class({"pathPattern": PATTERN})
    name = await served.bound("a", labels={"app.example.com/name": "web"}, annotations={"note": "x y"})
    directory = f"default-{served.of('a')}-web-x y"
    attributes = (await served.volume(name))["spec"]["csi"]["volumeAttributes"]

    assert attributes["subPath"] == attributes["pathPattern"] == directory
    assert await served.directories() == {directory}
    assert (await served.controller.quota(directory)).may_be(GIB)

    await served.unclaim("a", name)
    await served.gone(name)
    assert await served.directories() == await served.records() == set()


async def test_a_shared_directory_stays_until_its_last_claim_goes(served: Stage) -> None:
    """Behaviour.md 12, dynamic_pvc_delete_not_last_with_path_pattern and dynamic_pvc_delete_with_path_pattern."""
    await served.make_class({"pathPattern": "team/${.pvc.labels.app}"})
    names = {claim: await served.bound(claim, labels={"app": "web"}) for claim in "ab"}
    await served.controller.make("team/web/tree")

    await served.unclaim("a", names["a"])
    await served.gone(names["a"])
    assert await served.directories("team/web") == {"tree"}
    assert await served.records() == {names["b"]}

    await served.unclaim("b", names["b"])
    await served.gone(names["b"])
    assert await served.directories("team") == await served.records() == set()


async def test_claims_of_one_directory_that_go_together_take_it_along(served: Stage) -> None:
    """Each sees the others, and still the last one deletes."""
    await served.make_class({"pathPattern": "web"})
    names = {claim: await served.bound(claim) for claim in "abcd"}
    async with asyncio.TaskGroup() as tasks:
        for claim, name in names.items():
            tasks.create_task(served.unclaim(claim, name))
    for name in names.values():
        await served.gone(name)

    assert await served.directories() == await served.records() == set()


async def test_an_expanded_pattern_is_not_expanded_again(served: Stage) -> None:
    """Promise 21: what a tenant wrote is one directory of that name."""
    await served.make_class({"pathPattern": "x/${.pvc.annotations.note}"})
    hostile = ["${.pvc.name}", "$(touch x)", "`id`", "a;rm -rf", "quo\"te'", "-x", "%2e%2e"]
    for number, note in enumerate(hostile):
        await served.volume(await served.claim(f"c{number}", annotations={"note": note}))

    assert await served.directories("x") == set(hostile)


@pytest.mark.parametrize("note", ["..", "../..", "a/../../b", ".", "a\nb", "a\0b", "x" * 300, "/../x"])
async def test_a_hostile_annotation_is_refused_and_stops_nobody(served: Stage, note: str) -> None:
    """Promises 21 and 24."""
    await served.make_class({"pathPattern": "x/${.pvc.annotations.note}"})
    await served.claim("bad", annotations={"note": note})
    await served.volume(await served.claim("good", annotations={"note": "good"}))

    said = await served.event(served.of("bad"), "ProvisioningFailed")
    assert ("longer than 255" if len(note) == 300 else "pathPattern") in said
    assert await served.directories("x") == {"good"}


REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("claim Selector is not supported", {"spec": {"selector": {"matchLabels": {"a": "b"}}}}, {}),
    ("volumeMode Block is not supported", {"spec": {"volumeMode": "Block"}}, {}),
    ("ReadOnlyMany: a new volume is empty", {"spec": {"accessModes": ["ReadOnlyMany"]}}, {}),
    (
        "volumes can't be made from snapshots",
        {"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}},
        {},
    ),
    ("pathPattern / is the root of the file system", {}, {"pathPattern": "/"}),
    ("pathPattern must not contain '.' or '..'", {}, {"pathPattern": "../other"}),
    ("pathPattern ${.pvc.labels.x} is the root", {}, {"pathPattern": "${.pvc.labels.x}"}),
    ("can't be /.juicefs-csi", {}, {"pathPattern": ".juicefs-csi/volumes"}),
    ("can't be /.trash", {}, {"pathPattern": ".trash"}),
    ("more than one|one '=' between", {}, {"mountOptions": "a=b=c"}),
    ("juicefs/clean-cache must be", {}, {"juicefs/clean-cache": "maybe"}),
]


@pytest.mark.parametrize(("message", "claim", "parameters"), REFUSALS, ids=[one[0] for one in REFUSALS])
async def test_what_can_not_be_had_is_said_on_the_claim(
    served: Stage, *, message: str, claim: dict[str, Any], parameters: dict[str, str]
) -> None:
    """Promise 25: nothing is made, it counts as an error of provisioning, and others go on."""
    await served.make_class(parameters)
    name = await served.claim("a", **claim)

    said = await served.event(served.of("a"), "ProvisioningFailed")
    assert any(part in said for part in message.split("|"))
    assert served.metrics.provision_errors._value.get() >= 1
    assert await served.find(PERSISTENT_VOLUMES, name) is None


async def test_a_class_without_secrets_is_said_on_the_claim(served: Stage) -> None:
    """Promise 25: which parameter is missing."""
    await served.make_class(
        {"csi.storage.k8s.io/provisioner-secret-name": "", "csi.storage.k8s.io/provisioner-secret-namespace": ""}
    )
    await served.claim("a")

    said = await served.event(served.of("a"), "ProvisioningFailed")
    assert "names no Secret: set csi.storage.k8s.io/provisioner-secret-name" in said


async def test_a_small_claim_gets_a_whole_gib(served: Stage) -> None:
    """JuiceFS quotas know no less."""
    await served.make_class()
    volume = await served.volume(await served.claim("a", size="1Mi"))
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}


async def test_read_only_claims_share_what_a_pattern_names(served: Stage) -> None:
    """Behaviour.md 1.11: ReadOnlyMany with a pathPattern is allowed."""
    await served.make_class({"pathPattern": "data"})
    volume = await served.volume(await served.claim("a", spec={"accessModes": ["ReadOnlyMany"]}))
    assert volume["spec"]["accessModes"] == ["ReadOnlyMany"]


async def test_a_secret_that_comes_late_is_found(stage: Stage) -> None:
    """Told on the claim meanwhile; no marker of a Secret in any Event (promise 22)."""
    await stage.make_class()
    async with stage.serving():
        name = await stage.claim("a")
        said = await stage.event(stage.of("a"), "ProvisioningFailed")
        assert f"Secret default/{stage.name} does not exist" in said
        await stage.make_secret()
        await stage.volume(name)


async def test_a_malformed_secret_is_said_by_its_key(stage: Stage) -> None:
    """Promise 22: never by its value."""
    await stage.make_secret(metaurl=f"nosuch://user:{MARK}@host")
    await stage.make_class()
    async with stage.serving():
        await stage.claim("a")
        said = await stage.event(stage.of("a"), "ProvisioningFailed")
    assert f"Secret default/{stage.name}: secret key metaurl" in said
    assert MARK not in said


async def test_a_claim_that_waits_for_a_pod_gets_its_volume_with_the_node(served: Stage) -> None:
    """WaitForFirstConsumer; the node's values are filled in."""
    node = {"metadata": {"name": served.name, "labels": {"zone": "z1"}}, "spec": {"podCIDR": "10.1.0.0/24"}}
    await served.api.create(NODES, node)
    late = {"volumeBindingMode": "WaitForFirstConsumer"}
    await served.make_class({"pathPattern": "${.node.name}/${.node.labels.zone}"}, more=late)
    name = await served.claim("a")
    await served.volume(await served.claim("b", annotations={"volume.kubernetes.io/selected-node": served.name}))
    assert await served.find(PERSISTENT_VOLUMES, name) is None

    chosen = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": served.name}}}
    await served.api.patch(CLAIMS, served.of("a"), chosen, namespace="default")

    volume = await served.volume(name)
    assert volume["spec"]["csi"]["volumeAttributes"]["subPath"] == f"{served.name}/z1"


async def test_a_retained_volume_stays(served: Stage) -> None:
    """And has nothing of ours that keeps an admin from deleting it."""
    await served.make_class(more={"reclaimPolicy": "Retain"})
    name = await served.bound("a")
    await served.unclaim("a", name)
    volume = await served.volume(await served.claim("b"))

    assert not set(volume["metadata"].get("finalizers", ())) & {FINALIZER}
    assert name in await served.directories()
    assert (await served.volume(name))["status"]["phase"] == "Released"


async def test_a_volume_that_becomes_retained_is_let_go(served: Stage) -> None:
    """Else it could never be deleted."""
    await served.make_class()
    name = await served.bound("a")
    await served.api.patch(PERSISTENT_VOLUMES, name, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})

    async def is_let_go() -> bool:
        return FINALIZER not in (await served.volume(name))["metadata"].get("finalizers", ())

    await eventually(is_let_go)
    assert await served.directories() == {name}


async def test_a_volume_that_is_deleted_before_its_claim_takes_its_directory_along(served: Stage) -> None:
    """As the official provisioner does (HonorPVReclaimPolicy); not before the claim is gone."""
    await served.make_class()
    name = await served.bound("a")
    await served.unprotect(name)
    await served.api.delete(PERSISTENT_VOLUMES, name)
    await served.volume(await served.claim("b"))
    assert name in await served.directories()

    await served.unclaim("a", name)
    await served.gone(name)
    assert name not in await served.directories()


def static(stage: Stage, name: str, **csi: Any) -> dict[str, Any]:
    """A volume as an admin writes it, with the policy Delete and the annotation of the earlier driver's tests."""
    return {
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": stage.driver}},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Delete",
            "csi": {
                "driver": stage.driver,
                "volumeHandle": name,
                "fsType": "juicefs",
                "nodePublishSecretRef": {"name": stage.name, "namespace": "default"},
            }
            | csi,
        },
    }


async def test_a_static_volume_is_never_deleted(served: Stage) -> None:
    """Behaviour.md 12, static_delete_policy: the object goes, the directory stays."""
    await served.controller.create("other")
    name = served.of("static")
    await served.controller.make(name)
    await served.api.create(PERSISTENT_VOLUMES, static(served, name))
    await served.unprotect(name)
    await served.set_phase(name, "Released")
    await served.gone(name)

    assert name in await served.directories()


async def test_deleting_twice_is_deleting_once(served: Stage) -> None:
    """Promise 5: the same volume again, as somebody restores it from a backup of the cluster."""
    await served.make_class()
    name = await served.bound("a")
    volume = await served.volume(name)
    for _ in range(2):
        await served.unclaim("a", name)
        await served.gone(name)
        assert await served.directories() == set()
        spec = {key: value for key, value in volume["spec"].items() if key != "claimRef"}
        metadata = {"name": name, "annotations": volume["metadata"]["annotations"]}
        await served.api.create(PERSISTENT_VOLUMES, {"metadata": metadata, "spec": spec})


async def test_a_directory_that_another_volume_uses_stays(served: Stage) -> None:
    """Promise 5: a static volume of the same directory; this one's record and object go."""
    await served.make_class()
    name = await served.bound("a")
    other = static(served, served.of("static"), volumeAttributes={"subPath": name})
    await served.api.create(PERSISTENT_VOLUMES, other)
    await served.unclaim("a", name)
    await served.gone(name)

    assert await served.directories() == {name}
    assert await served.records() == set()


async def test_a_handle_that_another_volume_has_too_keeps_its_directory(served: Stage) -> None:
    """Two PersistentVolumes of one handle, as an admin copies one: the directory goes with the last."""
    await served.make_class()
    name, twin = await served.bound("a"), served.of("twin")
    copy = static(served, twin, volumeHandle=name, volumeAttributes={"subPath": f"{name}-moved"})
    await served.api.create(PERSISTENT_VOLUMES, copy)
    await served.unclaim("a", name)
    await served.gone(name)

    assert await served.directories() == {name}
    assert await served.find(PERSISTENT_VOLUMES, twin)


async def test_a_directory_that_holds_another_volume_is_not_deleted(served: Stage) -> None:
    """Promise 5: said on the volume, until the other is gone."""
    await served.make_class()
    name, other = await served.bound("a"), served.of("static")
    await served.api.create(PERSISTENT_VOLUMES, static(served, other, volumeAttributes={"subPath": f"{name}/inside"}))
    await served.unclaim("a", name)

    assert f"{other} lies in its directory" in await served.event(name, "VolumeFailedDelete")
    assert await served.directories() == {name}
    await served.unprotect(other)
    await served.api.delete(PERSISTENT_VOLUMES, other)
    await served.gone(name)


async def test_a_view_of_the_whole_file_system_keeps_nothing(served: Stage) -> None:
    """An admin's static volume of the root doesn't own what claims made."""
    await served.make_class()
    name = await served.bound("a")
    await served.api.create(PERSISTENT_VOLUMES, static(served, served.of("static")))
    await served.unclaim("a", name)
    await served.gone(name)
    assert await served.directories() == set()


async def test_the_same_directory_of_another_file_system_is_another(served: Stage, tmp_path: Path) -> None:
    """Told apart by what the Secrets say."""
    other = await served.make_secret(served.of("fs"), name="other", metaurl=f"sqlite3://{tmp_path}/other.db")
    await served.make_class({"pathPattern": "data"})
    name = await served.bound("a")
    volume = static(served, served.of("static"), volumeAttributes={"subPath": "data"})
    volume["spec"]["csi"]["nodePublishSecretRef"]["name"] = other
    await served.api.create(PERSISTENT_VOLUMES, volume)
    await served.unclaim("a", name)
    await served.gone(name)
    assert await served.directories() == set()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("${.pvc.annotations.path}", "is the directory"), ("${.pvc.annotations.path}/in", "lies in"), ("outer", "holds")],
)
async def test_another_claims_directory_is_refused(served: Stage, pattern: str, message: str) -> None:
    """Promise 20: of another StorageClass, or one in the other."""
    await served.make_class({"pathPattern": "outer/data"})
    mine = await served.volume(await served.claim("a"))
    other = await served.make_class({"pathPattern": pattern}, name=f"{served.name}-other")
    await served.claim("b", spec={"storageClassName": other}, annotations={"path": "outer/data"})

    said = await served.event(served.of("b"), "ProvisioningFailed")
    assert message in said
    assert mine["metadata"]["name"] in said


async def test_a_claim_that_is_deleted_before_it_has_a_volume_leaves_nothing(served: Stage) -> None:
    """Nothing leaks, though no PersistentVolume tells of it."""
    await served.make_class()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kubernetes, "create", _refused(Kubernetes.create))
        name = await served.claim("a")
        assert "is away" in await served.event(served.of("a"), "ProvisioningFailed")
        assert await served.records() == await served.directories() == {name}
        await served.unclaim("a")

        async def is_empty() -> bool:
            return not await served.directories()

        await eventually(is_empty)
    assert await served.records() == set()


def _refused(original: Any) -> Any:
    async def create(self: Kubernetes, kind: Kind, *args: Any, **keywords: Any) -> Any:
        if kind is PERSISTENT_VOLUMES:
            raise NotReady("the API server is away")
        return await original(self, kind, *args, **keywords)

    return create


async def test_a_foreign_volume_of_the_name_is_left_alone(stage: Stage) -> None:
    """409 is fine only when it's ours."""
    await stage.make_secret()
    await stage.make_class()
    name = await stage.claim("a")
    await stage.api.create(PERSISTENT_VOLUMES, static(stage, name))
    async with stage.serving():
        assert "was not made for this claim" in await stage.event(stage.of("a"), "ProvisioningFailed")
    assert (await stage.volume(name))["spec"].get("claimRef") is None


async def test_a_secret_is_held_while_a_volume_needs_it(served: Stage) -> None:
    """Behaviour.md 1.11, secretFinalizer: until the last volume of its StorageClass is gone."""
    await served.make_class({"secretFinalizer": "true"})
    names = {claim: await served.bound(claim) for claim in "ab"}
    await served.api.delete(SECRETS, served.name, namespace="default")
    for claim, name in names.items():
        assert await served.find(SECRETS, served.name)
        await served.unclaim(claim, name)
        await served.gone(name)

    assert await served.directories() == set()
    assert await served.find(SECRETS, served.name) is None


async def test_a_class_that_comes_with_its_claim_is_seen_at_once(served: Stage) -> None:
    """Whichever is watched first; and the claim gets one volume, told once."""
    for number in range(10):
        later = served.make_class(name=f"{served.name}-{number}")
        spec = {"storageClassName": f"{served.name}-{number}"}
        name, _ = await asyncio.gather(served.claim(f"c{number}", spec=spec), later)
        await served.volume(name)

    await until(lambda: served.said == [VolumeCreated(capacity_bytes=GIB)] * 10)


async def test_many_claims_at_once(served: Stage) -> None:
    """Each gets one volume; the Secret is all that is read, and nothing is listed."""
    await served.make_class()
    with counted() as requests:
        names = await asyncio.gather(*(served.claim(f"c{number}") for number in range(30)))
        await eventually(lambda: _are_there(served, set(names)), within=60)

    assert await served.directories() == set(names)
    assert requests["create persistentvolumes"] == requests["get secrets"] == 30
    assert not requests["list persistentvolumes"] + requests["get persistentvolumeclaims"]


async def _are_there(stage: Stage, names: set[str]) -> bool:
    return all([await stage.find(PERSISTENT_VOLUMES, name) for name in names])
