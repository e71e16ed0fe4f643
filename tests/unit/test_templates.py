"""What a claim's owner can write into a StorageClass's templates, and what not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.templates import Owner, Templates, names_node
from shared.domain import Subpath
from shared.errors import InvalidRequest
from shared.settings import parse_options

CLAIM = Owner(
    name="data", namespace="team", labels={"app.example.com/name": "web"}, annotations={"path": "a/b", "secret": "s1"}
)
NODE = Owner(name="n1", pod_cidr="10.0.0.0/24", labels={"zone": "z1"}, annotations={"cache/group": "g1"})


def filled(key: str, text: str, **annotations: str) -> str:
    claim = Owner(name="data", namespace="team", annotations=annotations) if annotations else CLAIM
    return Templates(claim=claim, volume="pvc-1", node=NODE).parameter(key, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${.pvc.namespace}-${.pvc.name}", "team-data"),
        ("${.PVC.namespace}/${.PVC.name}", "team/data"),
        ("${.pvc.labels.app.example.com/name}", "web"),
        ("x/${.pvc.annotations.path}/y", "x/a/b/y"),
        ("${.node.name}.${.node.labels.zone}.${.node.annotations.cache/group}", "n1.z1.g1"),
        ("[${.pvc.labels.none}${.pvc.annotations.none}${.pvc.uid}${.node.labels.none}]", "[]"),
        ("${MOUNT_POINT}${pvc.name}$", "${MOUNT_POINT}${pvc.name}$"),
    ],
)
def test_variables_are_filled_in(text: str, value: str) -> None:
    """Behaviour.md 3.4; what is missing is empty, what is no variable stays."""
    assert filled("pathPattern", text) == value


def test_the_network_of_the_node_can_be_named() -> None:
    """Behaviour.md 3.4."""
    assert filled("juicefs/mount-x", "${.node.podCIDR}") == "10.0.0.0/24"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${pvc.name}", "data"),
        ("${pvc.namespace}-${pv.name}", "team-pvc-1"),
        ("${pvc.annotations['secret']}", "s1"),
        ("${pvc.annotations['none']}${.pvc.name}${other}", ""),
    ],
)
def test_secrets_are_named_in_the_words_of_csi(text: str, value: str) -> None:
    """Behaviour.md 3.4; unknown is empty."""
    assert filled("csi.storage.k8s.io/node-publish-secret-name", text) == value


def test_a_claim_does_not_choose_the_namespace_of_a_secret() -> None:
    """Promise 20: as CSI has it, else a tenant could name another's."""
    with pytest.raises(InvalidRequest, match="can't choose the namespace"):
        filled("csi.storage.k8s.io/node-publish-secret-namespace", "${pvc.annotations['secret']}")


@pytest.mark.parametrize("value", ["../other", "a/b", "A", "x" * 300, "a\nb", "${pv.name}"])
def test_a_secret_has_a_name(value: str) -> None:
    """Promise 21: nothing else gets into the path of a request."""
    with pytest.raises(InvalidRequest, match="no name of a Secret"):
        filled("csi.storage.k8s.io/node-publish-secret-name", "${pvc.annotations['x']}", x=value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("pathPattern", "${.pvc.annotations.x}", ".."),
        ("pathPattern", "team/${.pvc.annotations.x}/data", "a/../.."),
        ("pathPattern", "team-${.pvc.annotations.x}", "a/b"),
        ("pathPattern", ".${.pvc.annotations.x}/b", "."),
        ("pathPattern", "${.pvc.annotations.x}", "a\0b"),
        ("mountOptions", "cache-size=${.pvc.annotations.x}", "1,subdir=/"),
        ("mountOptions", "cache-size=${.pvc.annotations.x}", "1\nsubdir=/"),
        ("mountOptions", "subdir=base/${.pvc.annotations.x}", "../other"),
        ("juicefs/host-path", "/data/${.pvc.annotations.x}", "a,/etc"),
        ("juicefs/host-path", "/data/${.pvc.annotations.x}", "../etc"),
        ("juicefs/mount-labels", '{"a": "${.pvc.annotations.x}"}', '", "b": "c'),
        ("juicefs/mount-labels", "a: ${.pvc.annotations.x}", "b\nc: d"),
        ("juicefs/mount-image", "${.pvc.annotations.x}", "${.pvc.name}"),
    ],
)
def test_a_value_that_leaves_its_place_is_refused(key: str, text: str, value: str) -> None:
    """Promise 21: by the name of the key."""
    with pytest.raises(InvalidRequest, match=key):
        filled(key, text, x=value)


def test_a_refusal_names_the_variable_and_never_shows_its_value() -> None:
    """Promise 22."""
    with pytest.raises(InvalidRequest) as refusal:
        filled("mountOptions", "a=${.pvc.annotations.x}", x="s3cret,b")
    assert "${.pvc.annotations.x}" in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("value", ["a b", "quo'te\"", "$(touch x)", "`x`", "${.pvc.name}", "a,b", "ünï", "a=b", "..a"])
def test_a_path_is_taken_literally(value: str) -> None:
    """Promise 21: one directory of that very name, and no second expansion."""
    assert filled("pathPattern", "team/${.pvc.annotations.x}", x=value) == f"team/{value}"


def test_a_mount_option_entry_may_hold_several() -> None:
    """Behaviour.md 1.11: expanded, trimmed, and split."""
    assert Templates(claim=CLAIM, volume="v").mount_options(" cache-size=1 ,subdir=${.pvc.name},, ") == [
        "cache-size=1",
        "subdir=data",
    ]


@pytest.mark.parametrize(("text", "is_so"), [("${.node.name}", True), ("${.pvc.name}", False), (".node.name", False)])
def test_only_who_names_a_node_needs_one(text: str, *, is_so: bool) -> None:
    """No GET of a node for nothing."""
    assert names_node(text) == is_so


@given(
    st.text(),
    st.sampled_from(["base/${.pvc.annotations.x}", "base/a-${.pvc.annotations.x}/b", "base/.${.pvc.annotations.x}"]),
)
def test_no_value_leaves_the_directory_of_its_pattern(value: str, pattern: str) -> None:
    """Promise 21, for every text."""
    try:
        path = Subpath.parse(filled("pathPattern", pattern, x=value), field="pathPattern")
    except InvalidRequest:
        return
    assert path.text == "base" or path.text.startswith("base/")
    assert ".." not in path.text.split("/")
    if pattern == "base/a-${.pvc.annotations.x}/b":
        assert path.text == f"base/a-{value}/b"


@given(st.text(alphabet=st.sampled_from("a,=/. \n\t\0${}x-")))
def test_no_value_becomes_a_second_mount_option(value: str) -> None:
    """Promise 21, for every text."""
    try:
        options = parse_options(
            Templates(claim=Owner(annotations={"x": value}), volume="v").mount_options("o=${.pvc.annotations.x}")
        )
    except InvalidRequest:
        return
    assert options == {"o": value}
