"""The driver's configuration: what applies to which volume, and how it adds up (behaviour.md 7)."""

from typing import Any

import pytest
import yaml

from shared.errors import InvalidRequest
from shared.pod_patch import Claim, Configuration, apply, fill
from shared.pod_settings import PodSettings

CLAIM = Claim(name="data", storage_class="fast", labels={"app": "db", "tier": "1"})
NODE = {"zone": "a"}
SETTINGS = PodSettings(image="mount:1", labels={"own": "1"}, resources={"limits": {"cpu": "1"}})


def configured(*patches: Any) -> Configuration:
    return Configuration.parse(yaml.safe_dump({"mountPodPatch": list(patches)}))


def merged(*patches: Any, claim: Claim | None = CLAIM) -> dict[str, Any]:
    return configured(*patches).merged(claim=claim, node_labels=NODE)


@pytest.mark.parametrize(
    "text", ["", "{}", "mountPodPatch:", "mountPodPatch: []", "enableNodeSelector: true\nnobody: 1"]
)
def test_a_configuration_may_say_nothing(text: str) -> None:
    """Keys that nobody knows are ignored, as users' files have them."""
    assert Configuration.parse(text) == Configuration()


def test_requests_are_kept_if_it_says_so() -> None:
    """enableAutoRemoveRequestResources, behaviour.md 7."""
    assert not Configuration.parse("enableAutoRemoveRequestResources: false").drops_requests


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "YAML"),
        ("[" * 3000, "YAML"),
        ("[]\n- a", "YAML"),
        ("[a]", "object"),
        ("mountPodPatch: {}", "mountPodPatch"),
        ("mountPodPatch: [a]", r"mountPodPatch\[0\]"),
        ("mountPodPatch: [{labels: {a: 1}}]", "labels"),
        ("mountPodPatch: [{labels: [a]}]", "labels"),
        ("mountPodPatch: [{volumes: [{emptyDir: {}}]}]", "name"),
        ("mountPodPatch: [{volumeMounts: [{mountPath: /x}]}]", "name"),
        ("mountPodPatch: [{pvcSelector: x}]", "pvcSelector"),
        ("mountPodPatch: [{nodeSelector: {matchExpressions: [{operator: In}]}}]", "key"),
        ("mountPodPatch: [{nodeSelector: {matchExpressions: [{key: a, operator: Like}]}}]", "Like"),
        ("mountPodPatch: [{mountOptions: a=b}]", "mountOptions"),
        ("mountPodPatch: [{mountOptions: [a=b=c]}]", "mount options"),
        ("mountPodPatch: [{mountOptions: [background]}]", "background"),
        ("mountPodPatch: [{cacheDirs: [{type: Tape}]}]", "Tape"),
        ("mountPodPatch: [{cacheDirs: [{type: HostPath}]}]", "cacheDirs"),
        ("mountPodPatch: [{cacheDirs: [{type: HostPath, path: ../x}]}]", "cacheDirs"),
        ("mountPodPatch: [{cacheDirs: [{type: PVC}]}]", "name"),
        ("mountPodPatch: [{hostNetwork: sure}]", "hostNetwork"),
        ("mountPodPatch: [{dnsPolicy: Mine}]", "dnsPolicy"),
        ("mountPodPatch: [{resources: {limits: [a]}}]", "limits"),
        ("mountPodPatch: [{env: [a]}]", "env"),
        ("enableAutoRemoveRequestResources: perhaps", "enableAutoRemoveRequestResources"),
    ],
)
def test_a_malformed_configuration_says_where(text: str, where: str) -> None:
    """It is refused when it is read, not when a volume is published."""
    with pytest.raises(InvalidRequest, match=where):
        Configuration.parse(text)


def test_what_is_null_is_not_there() -> None:
    """As in every manifest."""
    assert merged({"labels": None, "volumes": None, "pvcSelector": None, "ceMountImage": "a"})["ceMountImage"] == "a"


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [
        ({}, True),
        ({"matchName": "data"}, True),
        ({"matchName": "other"}, False),
        ({"matchName": ""}, True),
        ({"matchStorageClassName": "fast"}, True),
        ({"matchStorageClassName": "slow", "matchLabels": {"app": "db"}}, False),
        ({"matchStorageClassName": "fast", "matchLabels": {"app": "other"}}, True),
        ({"matchName": "other", "matchStorageClassName": "fast"}, False),
        ({"matchLabels": {"app": "db"}}, True),
        ({"matchLabels": {"app": "db", "tier": "2"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}, False),
        ({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["db"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
)
def test_claims_are_selected(selector: dict[str, Any], *, is_selected: bool) -> None:
    """behaviour.md 7: the name must fit, a StorageClass then decides alone, else the labels."""
    assert bool(merged({"pvcSelector": selector, "labels": {"a": "b"}}).get("labels")) == is_selected


def test_an_unknown_claim_is_selected_by_nothing_but_silence() -> None:
    """behaviour.md 7."""
    found = merged({"pvcSelector": {"matchName": "data"}, "ceMountImage": "a"}, {"labels": {"b": "c"}}, claim=None)
    assert (found.get("ceMountImage"), found["labels"]) == (None, {"b": "c"})


@pytest.mark.parametrize(("zone", "is_selected"), [("a", True), ("b", False)])
def test_nodes_are_selected(zone: str, *, is_selected: bool) -> None:
    """Claim and node must both match."""
    patch = {"nodeSelector": {"matchLabels": {"zone": zone}}, "pvcSelector": {"matchName": "data"}, "hostPID": True}
    assert ("hostPID" in merged(patch)) == is_selected


def test_a_later_patch_replaces_whole_fields() -> None:
    """behaviour.md 7: maps and lists are not merged deeply."""
    first = {"labels": {"a": "1"}, "env": [{"name": "A"}], "mountOptions": ["a"], "ceMountImage": "one"}
    found = merged(first, {"labels": {"b": "2"}, "env": [{"name": "B"}], "mountOptions": ["b"]})
    assert (found["labels"], found["env"], found["mountOptions"]) == ({"b": "2"}, [{"name": "B"}], ["b"])
    assert found["ceMountImage"] == "one"


def test_volumes_add_up() -> None:
    """With the mounts and devices of a patch's own; what is there already, or is the driver's, is skipped."""
    one = {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/a"}]}
    two = {
        "volumes": [
            {"name": name} for name in ("a", "b", "b", "jfs-dir", "cachedir-0", "hostpath-0", "config-1", "updatedb")
        ],
        "volumeMounts": [{"name": name, "mountPath": f"/2{name}"} for name in ("a", "b", "jfs-dir", "none")],
        "volumeDevices": [{"name": "b", "devicePath": "/dev/b"}],
    }
    found = merged(one, two)
    assert [volume["name"] for volume in found["volumes"]] == ["a", "b"]
    assert [mount["mountPath"] for mount in found["volumeMounts"]] == ["/a", "/2b"]
    assert [device["name"] for device in found["volumeDevices"]] == ["b"]


def test_labels_are_added_and_resources_replaced() -> None:
    """behaviour.md 7, "Applied"."""
    found = apply(SETTINGS, merged({"labels": {"new": "2"}, "resources": {"requests": {"cpu": 2, "memory": "1Gi"}}}))
    assert (found.labels, found.resources) == ({"own": "1", "new": "2"}, {"requests": {"cpu": "2", "memory": "1Gi"}})


def test_what_is_the_pods_own_business_is_kept_as_written() -> None:
    """And what is for another edition, mode or part is not."""
    patch = {"ceMountImage": "mount:2", "eeMountImage": "x", "mountOptions": ["a"], "hostPID": True, "startupProbe": {}}
    found = apply(SETTINGS, merged(patch))
    assert (found.image, set(found.patch)) == ("mount:2", {"hostPID", "volumes", "volumeMounts", "volumeDevices"})


def test_cache_directories_of_each_kind() -> None:
    """behaviour.md 10: the first empty directory of a patch replaces the volume's own."""
    context = {"juicefs/mount-cache-emptydir": "Memory:1Gi"}
    own = PodSettings.parse(context, claim_annotations={}, defaults=SETTINGS)
    dirs = [
        {"type": "PVC", "name": "disk"},
        {"type": "EmptyDir", "sizeLimit": "2Gi"},
        {"type": "EmptyDir"},
        {"type": "HostPath", "path": "/c"},
    ]
    found = {cache.path: cache.source for cache in apply(own, merged({"cacheDirs": dirs})).caches}
    assert found == {
        "/var/jfsCache-p0": {"persistentVolumeClaim": {"claimName": "disk"}},
        "/var/jfsCache-emptyDir": {"emptyDir": {"sizeLimit": "2Gi"}},
        "/c": {"hostPath": {"path": "/c", "type": "DirectoryOrCreate"}},
    }


def test_an_ephemeral_cache_is_refused_where_it_applies() -> None:
    """It is not supported; volumes that it is not for are served."""
    patch = {"pvcSelector": {"matchName": "other"}, "cacheDirs": [{"type": "Ephemeral"}]}
    assert apply(SETTINGS, merged(patch)).caches == ()
    with pytest.raises(InvalidRequest, match="Ephemeral"):
        apply(SETTINGS, merged({"cacheDirs": [{"type": "Ephemeral"}]}))


def test_templates_are_filled_at_any_depth() -> None:
    """behaviour.md 3.4; what nobody knows stays."""
    variables = {"MOUNT_POINT": "/jfs/m", "VOLUME_ID": "v", "VOLUME_NAME": "fs", "SUB_PATH": "s"}
    value = {"a": ["${MOUNT_POINT}/${VOLUME_ID}", {"b": "${VOLUME_NAME}${SUB_PATH} ${HOME} $(VOLUME_ID)"}], "c": 1}
    assert fill(value, variables) == {"a": ["/jfs/m/v", {"b": "fss ${HOME} $(VOLUME_ID)"}], "c": 1}
