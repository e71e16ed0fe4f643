"""The objects that mountpod makes: names, what is shown and what is not, and what a tenant can't do with them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import Subpath
from shared.errors import InvalidRequest
from shared.filesystem import Filesystem
from shared.layout import Layout
from shared.manifests import MountPod, Owner, pod_name, reference, references, secret
from shared.mount_script import LEAVE, SCRIPT
from shared.pod_settings import PodSettings
from shared.settings import ClientSettings, parse

TARGET = "/var/lib/kubelet/pods/3f1c2d9e-0000-4000-8000-000000000001/volumes/kubernetes.io~csi/juicefs-pv/mount"
KEY = "juicefs-144391950d04b8eab92b8695e1209d8c35e5cb70fee57e3d332db02"
OWNER = Owner(api_version="v1", kind="PersistentVolume", name="pv", uid="u")
UNIT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
HOSTILE = ["$(id)", "$(CSI_META_URL)", "`id`", "a'b", 'a"b', "a;b", "a b", "$HOME", "${HOME}", "a$$b", "*"]


def client(volume: str = "pvc-1", **changes: Any) -> ClientSettings:
    wanted = {"context": {}, "mount_options": [], "credentials": "c"} | changes
    return parse(volume_id=volume, **wanted)


def pod(settings: ClientSettings | None = None, **changes: Any) -> dict[str, Any]:
    made = settings or client()
    wanted: dict[str, Any] = {"pod": PodSettings(image="mount:1"), "node": "n1", "filesystem": "demo"}
    wanted |= {"mount": made.mount_name, **changes}
    name = pod_name(wanted["node"], wanted["mount"])
    return MountPod(name=name, namespace="kube-system", client=made, **wanted).to_json(Layout())


def container(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["containers"][0]
    return found


def options(made: dict[str, Any]) -> str:
    found: str = container(made)["args"][-1]
    return found


def expanded(text: str, environment: dict[str, str]) -> str:
    """As Kubernetes does it: `$$` is `$`, `$(NAME)` a variable if there is one."""
    return re.sub(
        r"\$\$|\$\(([^()]*)\)", lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text
    )


def test_the_key_of_a_reference() -> None:
    """behaviour.md C.1."""
    assert (reference(TARGET), len(reference(TARGET))) == (KEY, 63)
    assert references({KEY: TARGET, "juicefs-other": TARGET, reference("/a"): "/b"}) == {TARGET}


def test_what_kubectl_shows_of_a_pod() -> None:
    """behaviour.md 4.2, 4.7: the names that scripts look for."""
    made = pod(client(context={"juicefs/mount-delete-delay": "90s", "juicefs/clean-cache": "true"}), targets=(TARGET,))
    metadata, mount = made["metadata"], made["metadata"]["annotations"]["juicefs.com/mount"]
    assert metadata["name"] == f"juicefs-n1-{mount}"
    assert metadata["labels"].items() >= {"app.kubernetes.io/name": "juicefs-mount", "volume-id": "pvc-1"}.items()
    assert re.fullmatch(r"[0-9a-f]{63}", metadata["labels"]["juicefs-hash"])
    wanted = {"juicefs-uniqueid": "pvc-1", "juicefs-delete-delay": "90s", "juicefs-clean-cache": "true", KEY: TARGET}
    assert metadata["annotations"].items() >= wanted.items()
    assert "finalizers" not in metadata


def test_how_the_client_is_started() -> None:
    """behaviour.md C.3: what it mounts, where, and with which options."""
    made = pod(client(context={"subPath": "pvc-1"}, mount_options=["cache-size=100,enable-xattr"]))
    mount = made["metadata"]["annotations"]["juicefs.com/mount"]
    args = container(made)["args"]
    assert args[:4] == ["/bin/mount.juicefs", "$(CSI_META_URL)", f"/jfs/{mount}", "-o"]
    assert args[4] == "cache-size=100,enable-xattr,metrics=0.0.0.0:9567,subdir=/pvc-1"


def test_where_a_pod_runs_and_how_it_ends() -> None:
    """behaviour.md 4.7: this node, whatever its taints, after everything else and before nothing."""
    spec = pod()["spec"]
    assert (spec["nodeName"], spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("n1", "OnFailure", 10)
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["automountServiceAccountToken"] is False


LABEL = r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?"
NODES = st.lists(st.from_regex(LABEL, fullmatch=True), min_size=1, max_size=8).map(".".join)


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=32), NODES)
def test_every_name_fits(volume: str, node: str) -> None:
    """Whatever handle and node are called: 253 characters for a pod and a Secret, 63 for labels and the host name."""
    made = pod(client(volume), node=node)
    name, labels = made["metadata"]["name"], made["metadata"]["labels"]
    assert re.fullmatch(rf"{LABEL.replace('28', '250')}(\.{LABEL.replace('28', '250')})*", name)
    assert len(name) <= 253
    assert all(len(value) <= 63 for value in labels.values())
    assert UNIT.fullmatch(made["spec"]["hostname"])


def test_two_long_nodes_have_two_pods() -> None:
    """What is cut off still counts."""
    nodes = ["n" * 250 + "a", "n" * 250 + "b"]
    assert len({pod_name(node, client().mount_name) for node in nodes}) == 2


def test_the_host_name_may_be_the_pods() -> None:
    """behaviour.md 4.7: hostnameKey; else it is the volume's, so that `juicefs status` tells whose session it is."""
    settings = PodSettings(image="mount:1", patch={"hostnameKey": "podname"})
    assert "hostname" not in pod(pod=settings)["spec"]
    assert pod(client("a.b"))["spec"]["hostname"] == "a-b"


def test_a_successor_has_another_name_on_the_same_path() -> None:
    """The same one whoever asks, and one that leads back to the volume."""
    mount = client().mount_name
    one, two = pod_name("n1", mount, after="uid-1"), pod_name("n1", mount, after="uid-2")
    assert len({pod_name("n1", mount), one, two}) == 3
    assert one == pod_name("n1", mount, after="uid-1")
    assert re.fullmatch(r"juicefs-n1-pvc-1-[a-z]{6}", one)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_tenant_writes_stays_what_it_is(text: str) -> None:
    """Promise 21: in no command, and literally where it must be."""
    settings = client(context={"subPath": f"x/{text}"}, mount_options=[f"cache-dir=/c/{text}"])
    caches = PodSettings(image="mount:1").with_cache_directories(f"/c/{text}")
    made = container(pod(settings, pod=caches))
    # Kubernetes makes one dollar of two, and replaces $(NAME).
    assert made["command"] == ["/bin/sh", "-c", SCRIPT.replace("$", "$$"), "jfs-mount"]
    assert expanded(options({"spec": {"containers": [made]}}), {"CSI_META_URL": "leaked"}).split(",") == [
        f"cache-dir=/c/{text}", "metrics=0.0.0.0:9567", f"subdir=/x/{text}",
    ]  # fmt: skip


def test_the_caches_to_clean_are_literal_too() -> None:
    """Kubernetes expands the values of variables as well."""
    caches = PodSettings(image="mount:1").with_cache_directories("/c/$(CSI_META_URL)")
    environment = container(pod(client(context={"juicefs/clean-cache": "true"}), pod=caches))["env"]
    clean = next(one["value"] for one in environment if one["name"] == "CSI_CLEAN")
    assert expanded(clean, {"CSI_META_URL": "leaked"}) == "/c/$(CSI_META_URL)"


def test_a_directory_with_a_comma_makes_no_options() -> None:
    """The client splits its options at commas, and a subPath may come from a claim's annotation."""
    with pytest.raises(InvalidRequest, match="subdir"):
        pod(client(context={"subPath": "x,allow_other"}))


def test_no_secret_is_in_the_pod() -> None:
    """Promise 22: the environment comes from the Secret by reference."""
    given = {
        "name": "demo",
        "metaurl": "redis://:marker-1@redis/1",
        "storage": "s3",
        "bucket": "https://b.example",
        "access-key": "marker-2",
        "secret-key": "marker-3",
        "envs": '{"TOKEN": "marker-4"}',
    }
    fs = Filesystem.parse(given)
    settings = client(credentials=fs.credentials)
    assert "marker" not in str(pod(settings))
    made = secret(fs, volume_id="pvc-1", namespace="kube-system", owner=OWNER)
    assert {"META_PASSWORD", "ACCESS_KEY", "SECRET_KEY", "TOKEN", "CSI_META_URL", "CSI_FORMAT"} == set(made["data"])


def test_the_secret_belongs_to_the_volume() -> None:
    """behaviour.md 2.4."""
    fs = Filesystem.parse({"name": "demo", "metaurl": "redis://redis/1"})
    metadata = secret(fs, volume_id="pvc-1", namespace="kube-system", owner=OWNER)["metadata"]
    assert (metadata["name"], metadata["labels"]) == ("juicefs-pvc-1-secret", {"juicefs/secret": "true"})
    owner = {"apiVersion": "v1", "kind": "PersistentVolume", "name": "pv", "uid": "u"}
    assert metadata["ownerReferences"] == [owner]


def test_only_a_new_client_formats() -> None:
    """One that takes another's place finds the file system there."""
    first, later = ({one["name"]: one for one in container(pod(is_new=new))["env"]} for new in (True, False))
    assert first["CSI_FORMAT"]["valueFrom"]["secretKeyRef"]["key"] == "CSI_FORMAT"
    assert later["CSI_FORMAT"]["value"] == ""


def test_without_requests_the_limits_stay() -> None:
    """behaviour.md 4.8: on a node that is short of something."""
    settings = PodSettings.parse({}, claim_annotations={}, defaults=PodSettings(image="mount:1"))
    resources = container(pod(pod=settings, has_requests=False))["resources"]
    assert resources == {"limits": {"cpu": "5000m", "memory": "5Gi"}, "requests": {"cpu": "0", "memory": "0"}}


@pytest.mark.parametrize(
    ("is_host", "option", "shown", "ports"),
    [
        (False, [], "metrics=0.0.0.0:9567", [9567]),
        (False, ["metrics=0.0.0.0:9999"], "metrics=0.0.0.0:9999", [9999]),
        (True, [], "metrics=0.0.0.0:0", []),
        (True, ["metrics=0.0.0.0:9999"], "metrics=0.0.0.0:9999", []),
    ],
)
def test_metrics_on_the_hosts_network(*, is_host: bool, option: list[str], shown: str, ports: list[int]) -> None:
    """behaviour.md 3.3: the user's value counts, and the port follows it; two clients share no port of a host."""
    settings = PodSettings(image="mount:1", patch={"hostNetwork": is_host, "hostPID": is_host})
    made = pod(client(mount_options=option), pod=settings)
    assert options(made) == shown
    assert [port["containerPort"] for port in container(made)["ports"]] == ports
    assert (made["spec"]["hostNetwork"], made["spec"]["hostPID"]) == (is_host, is_host)


def test_a_patch_reaches_the_pod_with_its_templates_filled() -> None:
    """behaviour.md 3.4, 7, 12 (recreate_mountpod_reload_config): labels, probes, caches, environment."""
    settings = PodSettings(
        image="mount:1",
        labels={"volume": "${VOLUME_ID}"},
        annotations={"at": "${MOUNT_POINT}"},
        host_paths=("/h/${VOLUME_NAME}",),
        patch={
            "livenessProbe": {"exec": {"command": ["stat", "${MOUNT_POINT}"]}},
            "env": [{"name": "A", "value": "${SUB_PATH}"}],
        },
    ).with_cache_directories("/c/${VOLUME_ID}")
    made = pod(client(context={"subPath": "p"}, mount_options=["cache-dir=/c/${VOLUME_ID}"]), pod=settings)
    mount = made["metadata"]["annotations"]["juicefs.com/mount"]
    assert made["metadata"]["labels"]["volume"] == "pvc-1"
    assert made["metadata"]["annotations"]["at"] == f"/jfs/{mount}"
    assert container(made)["livenessProbe"]["exec"]["command"] == ["stat", f"/jfs/{mount}"]
    assert {"name": "A", "value": "p"} in container(made)["env"]
    assert {"name": "cachedir-0", "mountPath": "/c/pvc-1"} in container(made)["volumeMounts"]
    assert {"name": "hostpath-0", "hostPath": {"path": "/h/demo", "type": "DirectoryOrCreate"}} in made["spec"][
        "volumes"
    ]
    assert options(made).startswith("cache-dir=/c/pvc-1,")


def test_a_handle_that_climbs_is_no_path_of_the_host() -> None:
    """Promise 21: what a template puts in is looked at as well."""
    settings = PodSettings(image="mount:1").with_cache_directories("/c/${VOLUME_ID}")
    with pytest.raises(InvalidRequest, match="cache"):
        pod(client("../../etc"), pod=settings)


def test_no_path_is_mounted_twice() -> None:
    """Kubernetes would refuse the pod."""
    settings = PodSettings(image="mount:1", host_paths=("/c", "/d")).with_cache_directories("/c")
    paths = [mount["mountPath"] for mount in container(pod(pod=settings))["volumeMounts"]]
    assert paths == ["/jfs", "/tmp", "/c", "/d"]


def test_a_lifecycle_of_ones_own_keeps_the_hand_over() -> None:
    """Unless it says itself what is done before the end."""
    start = {"postStart": {"exec": {"command": ["true"]}}}
    made = container(pod(pod=PodSettings(image="mount:1", patch={"lifecycle": start})))
    assert made["lifecycle"] == {**start, "preStop": {"exec": {"command": ["/bin/sh", "-c", LEAVE]}}}
    own = {"preStop": {"exec": {"command": ["true"]}}}
    assert container(pod(pod=PodSettings(image="mount:1", patch={"lifecycle": own})))["lifecycle"] == own


@pytest.mark.parametrize(
    ("text", "written"),
    [("500h", "1800000s"), ("1h0m0.5s", "3600.5s"), ("10000h", "36000000s"), ("1ns", "0.000000001s")],
)
def test_a_delete_delay_can_be_read_back(text: str, written: str) -> None:
    """After a change of the leader it is all that is known of it."""
    settings = client(context={"juicefs/mount-delete-delay": text})
    assert pod(settings)["metadata"]["annotations"]["juicefs-delete-delay"] == written
    assert client(context={"juicefs/mount-delete-delay": written}).delete_delay == settings.delete_delay


def test_users_labels_are_added_and_ours_win() -> None:
    """behaviour.md 4.7."""
    settings = PodSettings(image="mount:1", labels={"a": "b", "volume-id": "x"}, annotations={"juicefs-uniqueid": "x"})
    metadata = pod(pod=settings)["metadata"]
    assert (metadata["labels"]["a"], metadata["labels"]["volume-id"]) == ("b", "pvc-1")
    assert metadata["annotations"]["juicefs-uniqueid"] == "pvc-1"


def test_subdir_of_the_whole_file_system_is_none() -> None:
    """A static volume without subPath."""
    settings = ClientSettings(volume_id="v", credentials="c", subdir=Subpath(), options=())
    assert "subdir" not in options(pod(settings))
