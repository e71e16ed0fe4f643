"""What deploy/ says is what the programs are, and no more than they need."""

import argparse
import re
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import yaml

import services.controller.__main__ as controller
import services.mountpod.__main__ as mountpod
import services.node.__main__ as node
from shared import nats_auth, options, settings, tap
from shared.filesystem import Filesystem
from shared.nats_auth import SERVICES
from tests.deploy.rendering import DEPLOY, ROOT, Object, containers, of_kind, workloads

PRIVILEGED = {("juicefs-csi-node", "juicefs-plugin")}
"""Kubernetes allows mounts that the machine sees to privileged containers only."""
TOKEN = {
    "juicefs-csi-controller": True,
    "juicefs-csi-mountpod": None,  # as its service account has it
    "juicefs-csi-nats": False,
    "juicefs-csi-node": False,
    "juicefs-csi-tap": False,
}
PROGRAMS = {
    "juicefs-csi-controller": controller.main,
    "juicefs-csi-mountpod": mountpod.main,
    "juicefs-csi-node": node.main,
    "juicefs-csi-nats-auth": nats_auth.main,
    "juicefs-csi-tap": tap.main,
}


def each(objects: tuple[Object, ...]) -> Iterator[tuple[tuple[str, str], Object, Object]]:
    for name, pod in workloads(objects).items():
        for container, found in containers(pod).items():
            yield (name, container), pod, found


def test_only_the_node_service_is_privileged(objects: tuple[Object, ...]) -> None:
    """Everything else has no capability, gains none, and can't change its image."""
    for place, _, container in each(objects):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"], place
        if place in PRIVILEGED:
            continue
        assert "privileged" not in context, place
        assert context["capabilities"] == {"drop": ["ALL"]}, place
        assert context["allowPrivilegeEscalation"] is False, place


def test_everything_but_the_node_service_is_an_ordinary_user(objects: tuple[Object, ...]) -> None:
    for name, pod in workloads(objects).items():
        if name != "juicefs-csi-node":
            assert pod["securityContext"]["runAsNonRoot"], name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_only_the_node_service_has_host_paths(objects: tuple[Object, ...]) -> None:
    """And shares no namespace with its machine."""
    for name, pod in workloads(objects).items():
        paths = [volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume]
        assert bool(paths) == (name == "juicefs-csi-node"), (name, paths)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name


def test_tokens_are_where_the_api_server_is_asked(objects: tuple[Object, ...]) -> None:
    """The node service has neither a token nor a right; of NATS only the container that makes the passwords has one."""
    pods = workloads(objects)
    accounts = of_kind(objects, "ServiceAccount")
    for name, expected in TOKEN.items():
        account = accounts[pods[name]["serviceAccountName"]]
        told = pods[name].get("automountServiceAccountToken", account.get("automountServiceAccountToken"))
        assert told == expected, name
    mounts = {place: found["volumeMounts"] for place, _, found in each(objects) if place[0] == "juicefs-csi-nats"}
    assert [place for place, found in mounts.items() if any(mount["name"] == "token" for mount in found)] == [
        ("juicefs-csi-nats", "passwords")
    ]


def test_the_accounts_of_node_and_mount_pods_have_no_rights(objects: tuple[Object, ...]) -> None:
    bound = {
        subject["name"]
        for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding").values()
        for subject in binding["subjects"]
    }
    assert bound == {"juicefs-csi-controller-sa", "juicefs-csi-mountpod-sa", "juicefs-csi-nats-sa"}


def test_no_right_is_a_wildcard(objects: tuple[Object, ...]) -> None:
    """And nobody lists Secrets: they are read by name."""
    for name, role in of_kind(objects, "Role", "ClusterRole").items():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], name
            assert "secrets" not in rule["resources"] or not {"list", "watch"} & set(rule["verbs"]), name


def test_each_service_is_given_its_own_password_only(objects: tuple[Object, ...]) -> None:
    """As a file: an argument or a variable of the environment is easier to see."""
    for name, pod in workloads(objects).items():
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        keys = [item["key"] for one in secrets if one["secretName"] == "juicefs-csi-nats-auth" for item in one["items"]]
        assert keys == ([] if name == "juicefs-csi-nats" else [name.removeprefix("juicefs-csi-")])


def test_nats_is_given_every_password(objects: tuple[Object, ...]) -> None:
    """By the names that its configuration reads."""
    nats = containers(workloads(objects)["juicefs-csi-nats"])["nats"]
    given = {one["name"]: one["valueFrom"]["secretKeyRef"]["key"] for one in nats["env"]}
    read = re.findall(r"password: \$(\w+)", (DEPLOY / "base" / "nats.conf").read_text())

    assert given == {name: name.removeprefix("PASSWORD_").lower() for name in read}
    assert sorted(given.values()) == sorted(SERVICES)


def test_every_container_says_what_it_needs(objects: tuple[Object, ...]) -> None:
    """Memory is limited; the CPU is not, since a throttled driver is a slow mount."""
    for place, pod, container in each(objects):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, place
        assert set(container["resources"]["limits"]) == {"memory"}, place
        assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}, place


def test_every_object_is_labelled(objects: tuple[Object, ...]) -> None:
    """behaviour.md 0: component labels; pods also by `app`."""
    for found in objects:
        assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "juicefs-csi-driver"
    for name, found in of_kind(objects, "StatefulSet", "DaemonSet", "Deployment").items():
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert (labels["app"], labels["app.kubernetes.io/name"]) == (name, "juicefs-csi-driver")


def test_every_image_is_built_here_or_official(objects: tuple[Object, ...]) -> None:
    """And its tag is a version."""
    targets = re.search(r"targets=\(([a-z ]+)\)", (ROOT / "scripts" / "images").read_text())
    assert targets is not None
    ours = {f"juicefs-csi-{target}" for target in targets[1].split()}
    for place, _, container in each(objects):
        name, _, tag = container["image"].partition(":")
        assert name in ours or name.startswith("registry.k8s.io/sig-storage/"), place
        assert re.fullmatch(r"v?\d+\.\d+\.\d+|dev", tag), place


def test_mount_pods_get_the_image_of_this_version(objects: tuple[Object, ...]) -> None:
    """`images:` of an overlay reaches it too."""
    mountpod_container = containers(workloads(objects)["juicefs-csi-mountpod"])["mountpod"]
    given = {one["name"]: one["value"] for one in mountpod_container["env"]}
    _, _, tag = mountpod_container["image"].partition(":")

    assert given["JUICEFS_CSI_MOUNT_IMAGE"] == f"juicefs-csi-mount:{tag}"


def test_every_option_is_one_of_the_programs(objects: tuple[Object, ...]) -> None:
    """An argument or a variable that a program does not know would stop it, or be ignored."""
    for place, _, container in each(objects):
        program = container.get("command", [container["image"].partition(":")[0]])[0]
        if program not in PROGRAMS:
            continue
        known = options_of(program)
        arguments = [*container.get("command", ())[1:], *container.get("args", ())]
        variables = [one["name"] for one in container.get("env", ())]
        given = [*arguments, *(name.replace(options.PREFIX, "--").lower().replace("_", "-") for name in variables)]
        assert {word.partition("=")[0] for word in given} <= known, place


def options_of(program: str) -> set[str]:
    """The options that a program would take, asked of its own parser."""
    found: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, _: object = None) -> argparse.Namespace:
        found.append(parser)
        raise KeyboardInterrupt

    with patch.object(options, "parse", stop), pytest.raises(KeyboardInterrupt):
        PROGRAMS[program]()
    return {option for action in found[0]._actions for option in action.option_strings}


@pytest.mark.parametrize("example", ["dynamic.yaml", "static.yaml"])
def test_an_example_is_what_the_driver_takes(example: str) -> None:
    """Its Secret names a file system, and its volumes have options that there are."""
    objects = tuple(yaml.safe_load_all((ROOT / "examples" / example).read_text()))
    for secret in of_kind(objects, "Secret").values():
        Filesystem.parse(secret["stringData"])
    for name, volume in of_kind(objects, "PersistentVolume").items():
        context = volume["spec"]["csi"].get("volumeAttributes", {})
        settings.parse(volume_id=name, context=context, mount_options=(), credentials="")
