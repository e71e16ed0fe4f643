"""What a claim gets, and what it is told when it can't have it."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.provisioning import (
    Plan,
    class_name,
    is_asked,
    needs_node,
    plan,
    selected_node,
    waits_for_pod,
)
from services.controller.used import Use, Used, use_of
from shared.domain import GIB, Subpath
from shared.errors import InvalidRequest
from shared.objects import Claim, PersistentVolume, StorageClass
from shared.secret_ref import SecretRef

DRIVER = "csi.juicefs.com"
SECRETS = {
    f"csi.storage.k8s.io/{purpose}-secret-{part}": value
    for purpose in ("provisioner", "node-publish", "controller-expand")
    for part, value in (("name", "s"), ("namespace", "ns"))
}


def claim(*, annotations: dict[str, str] | None = None, **spec: Any) -> Claim:
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "sc"}
    asked = {"volume.kubernetes.io/storage-provisioner": DRIVER}
    metadata = {"name": "data", "namespace": "team", "uid": "u-1", "resourceVersion": "7"}
    return msgspec.convert(
        {"metadata": metadata | {"annotations": asked | (annotations or {})}, "spec": wanted | spec}, Claim
    )


def storage_class(parameters: dict[str, str] | None = None, *, more: dict[str, Any] | None = None) -> StorageClass:
    kept = {key: value for key, value in (SECRETS | (parameters or {})).items() if value != "-"}
    body = {"metadata": {"name": "sc"}, "provisioner": DRIVER, "parameters": kept}
    return msgspec.convert(body | (more or {}), StorageClass)


def stored(made: Plan) -> PersistentVolume:
    return msgspec.convert(made.manifest(capacity=GIB, driver=DRIVER), PersistentVolume)


@pytest.mark.parametrize(
    ("changes", "is_so"),
    [
        ({}, True),
        ({"volumeName": "pv"}, False),
        ({"annotations": {"volume.kubernetes.io/storage-provisioner": "other"}}, False),
    ],
)
def test_only_claims_that_ask_for_this_driver_are_served(changes: dict[str, Any], *, is_so: bool) -> None:
    """Behaviour.md 1.11: annotated, and not bound."""
    assert is_asked(claim(**changes), driver=DRIVER) == is_so


def test_the_older_annotation_is_heard_too() -> None:
    """Behaviour.md 1.11."""
    old = {"volume.kubernetes.io/storage-provisioner": "", "volume.beta.kubernetes.io/storage-provisioner": DRIVER}
    assert is_asked(claim(annotations=old), driver=DRIVER)
    assert class_name(claim(annotations={"volume.beta.kubernetes.io/storage-class": "old"})) == "old"


def test_who_waits_for_a_pod_waits_for_its_node() -> None:
    """WaitForFirstConsumer."""
    late = storage_class(more={"volumeBindingMode": "WaitForFirstConsumer"})
    chosen = claim(annotations={"volume.kubernetes.io/selected-node": "n1"})
    assert waits_for_pod(claim(), late)
    assert not waits_for_pod(chosen, late)
    assert not waits_for_pod(claim(), storage_class())
    assert selected_node(chosen) == "n1"


def test_a_node_is_asked_for_only_by_name() -> None:
    """In a parameter or a mount option."""
    assert needs_node(storage_class({"pathPattern": "${.node.name}"}))
    assert needs_node(storage_class(more={"mountOptions": ["a=${.node.name}"]}))
    assert not needs_node(storage_class({"pathPattern": "${.pvc.name}"}))


def test_the_directory_is_where_publish_looks_for_it() -> None:
    """The subdir of mount options and parameters is before it."""
    made = plan(
        claim(), storage_class({"mountOptions": "subdir=base", "pathPattern": "/${.pvc.namespace}/${.pvc.name}/"})
    )
    assert made.path == Subpath(text="base/team/data")
    assert made.attributes["subPath"] == "team/data"
    use = use_of(stored(made), driver=DRIVER)
    assert use
    assert (use.path, use.handle, use.is_provisioned) == (made.path, "pvc-u-1", True)


def test_a_parameter_does_not_set_what_the_driver_sets() -> None:
    """`subPath` and `capacity` are the driver's own."""
    attributes = stored(plan(claim(), storage_class({"subPath": "other", "capacity": "1"}))).spec.csi
    assert attributes
    assert attributes.volume_attributes["subPath"] == "pvc-u-1"
    assert attributes.volume_attributes["capacity"] == str(GIB)


def test_secrets_are_named_by_templates() -> None:
    """Behaviour.md 3.4: one Secret for each claim, in its namespace."""
    keys = {key: "${pvc.annotations['secret']}" if key.endswith("name") else "${pvc.namespace}" for key in SECRETS}
    made = plan(claim(annotations={"secret": "mine"}), storage_class(keys))
    assert made.provisioner == made.node_publish == SecretRef(namespace="team", name="mine")


def test_an_expansion_secret_is_optional() -> None:
    """Four parameters are enough (behaviour.md C.2)."""
    made = plan(claim(), storage_class({key: "-" for key in SECRETS if "expand" in key}))
    assert made.controller_expand is None
    assert "controllerExpandSecretRef" not in made.manifest(capacity=GIB, driver=DRIVER)["spec"]["csi"]


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_only_what_is_deleted_with_its_claim_holds_on(policy: str) -> None:
    """Behaviour.md 1.11: finalizers are for reclaim Delete."""
    made = plan(claim(), storage_class({"secretFinalizer": "true"}, more={"reclaimPolicy": policy}))
    is_held = policy == "Delete"
    assert made.is_secret_held == is_held
    assert ("finalizers" in made.manifest(capacity=GIB, driver=DRIVER)["metadata"]) == is_held


@pytest.mark.parametrize(
    "key", ["provisioner-secret-name", "provisioner-secret-namespace", "controller-expand-secret-name"]
)
def test_half_a_secret_is_none(key: str) -> None:
    """The parameter that is missing is named."""
    with pytest.raises(InvalidRequest, match=f"parameter csi.storage.k8s.io/{key} is empty"):
        plan(claim(), storage_class({f"csi.storage.k8s.io/{key}": "-"}))


@pytest.mark.parametrize("size", ["0", "-1Gi", "", "much"])
def test_a_size_that_is_none(size: str) -> None:
    """Nothing or a whole number of GiB."""
    wanted = claim(resources={"requests": {"storage": size}})
    if size == "0":
        assert plan(wanted, storage_class()).required == 0
    else:
        with pytest.raises(InvalidRequest):
            plan(wanted, storage_class())


@pytest.mark.parametrize("modes", [[], ["ReadOnlyMany"], ["Strange"], ["ReadWriteMany", "Strange"]])
def test_access_modes_that_are_not_supported(modes: list[str]) -> None:
    """Behaviour.md 1.11: an empty volume must be writable."""
    with pytest.raises(InvalidRequest, match=r"ReadOnlyMany|access mode Strange"):
        plan(claim(accessModes=modes), storage_class())


@given(st.text(), st.text(), st.text())
def test_whatever_a_claim_says_it_gets_a_volume_of_its_class_or_a_refusal(a: str, b: str, c: str) -> None:
    """Promises 21 and 24: a directory below the pattern's, the class's options, and no other error."""
    klass = storage_class(
        {"pathPattern": "base/${.pvc.annotations.a}", "juicefs/mount-labels": "x: ${.pvc.annotations.c}"},
        more={"mountOptions": ["cache-size=${.pvc.annotations.b}"]},
    )
    try:
        made = plan(claim(annotations={"a": a, "b": b, "c": c}), klass)
    except InvalidRequest:
        return
    assert made.path.text == "base" or made.path.text.startswith("base/")
    assert made.mount_options == (f"cache-size={b}",)
    assert made.attributes["juicefs/mount-labels"] == f"x: {c}"


USE = Use(name="pv", uid="1", handle="h", path=Subpath(text="a/b"))


def test_uses_are_found_by_where_they_are() -> None:
    """Equal, inside, around; the whole file system is around nothing."""
    used = Used()
    for name, path in (("pv", "a/b"), ("inner", "a/b/c/d"), ("outer", "a"), ("root", ""), ("near", "a/bc")):
        used.add(replace(USE, name=name, path=Subpath(text=path)))
    here = Subpath(text="a/b")
    assert [use.name for use in used.at(here)] == ["pv"]
    assert [use.name for use in used.inside(here)] == ["inner"]
    assert [use.name for use in used.around(here)] == ["outer"]
    assert len(used.of_handle("h")) == 5

    for name in ("pv", "inner", "outer", "root", "near"):
        used.remove(name)
    assert (used._uses, used._at, used._inside, used._handles) == ({}, {}, {}, {})


def test_what_is_finished_does_not_come_back() -> None:
    """Its PersistentVolume is seen for a while; another one of its name is another."""
    used = Used()
    used.add(USE)
    used.finish(USE)
    used.add(USE)
    assert list(used) == []
    assert used.is_finished(USE)
    used.add(replace(USE, uid="2"))
    assert [use.uid for use in used] == ["2"]
    used.forget("pv")
    assert not used.is_finished(USE)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from("xy"), max_size=4), st.booleans())))
def test_the_index_is_what_it_was_told(steps: list[tuple[str, list[str], bool]]) -> None:
    """Against the plain answer, after any changes."""
    used, plain = Used(), dict[str, Subpath]()
    for name, parts, is_there in steps:
        path = Subpath(text="/".join(parts))
        used.add(replace(USE, name=name, path=path)) if is_there else used.remove(name)
        plain = {key: value for key, value in plain.items() if key != name} | ({name: path} if is_there else {})
    for path in (Subpath(text=text) for text in ("x", "x/y", "y/y/x")):
        found = [{use.name for use in which} for which in (used.at(path), used.inside(path), used.around(path))]
        assert found[0] == {name for name, other in plain.items() if other == path}
        overlapping = {name for name, other in plain.items() if other and other.overlaps(path) and other != path}
        assert found[1] | found[2] == overlapping
        assert all(len(plain[name].text) > len(path.text) for name in found[1])


def test_an_unmountable_volume_uses_nothing() -> None:
    """Promise 24: what nobody can understand stops nobody."""
    for broken in ({"mountOptions": ["a=b=c"]}, {"csi": {"driver": DRIVER, "volumeAttributes": {"subPath": ".."}}}):
        volume = {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": DRIVER, "volumeHandle": "h"}} | broken}
        assert use_of(msgspec.convert(volume, PersistentVolume), driver=DRIVER) is None
