"""The objects that mountpod makes in Kubernetes: a client's pod and its Secret, as pure functions (behaviour.md 4.7).

Whatever a tenant chose stands in an argument or in the environment, never in the text of the script, which is the same
for every pod.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from shared.domain import digest, letters
from shared.errors import InvalidRequest
from shared.filesystem import Filesystem
from shared.juicefs import Juicefs
from shared.layout import Layout
from shared.mount_script import LEAVE, SCRIPT
from shared.pod_patch import fill
from shared.pod_settings import CacheVolume, PodSettings, plain_path
from shared.settings import ClientSettings, unique_id

T = TypeVar("T")

MOUNT_POD: Final = "juicefs-mount"
"""Label app.kubernetes.io/name of every mount pod."""
CONTAINER: Final = "jfs-mount"
MOUNT: Final = "juicefs.com/mount"
"""Annotation: the name of the mount, which a pod that takes another's place keeps."""
OURS: Final = "juicefs/secret"
"""Label of the Secrets that mountpod makes."""
CLIENT: Final = "juicefs.com/client"
"""Annotation: digest of the client's settings without how its pod looks."""
DELETE_DELAY: Final = "juicefs-delete-delay"
UNIQUE_ID: Final = "juicefs-uniqueid"
_METRICS_PORT: Final = 9567
_HOST: Final = "/jfs"
_LABEL_LENGTH: Final = 63
_NAME_LENGTH: Final = 253
_KEY_LENGTH: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The object that takes a dependent one with it when it is deleted."""

    api_version: str
    kind: str
    name: str
    uid: str

    def to_json(self) -> dict[str, str]:
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPod:
    """One pod: `mount` is the name of its mount, `name` its own; `targets` are mirrored in its annotations."""

    name: str
    mount: str
    node: str
    namespace: str
    client: ClientSettings
    pod: PodSettings
    filesystem: str
    targets: tuple[str, ...] = ()
    is_new: bool = True
    has_requests: bool = True

    def to_json(self, layout: Layout) -> dict[str, Any]:
        """The object to create; paths of `layout` are the host's."""
        patch = self._filled(self.pod.patch)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": self._labels(),
                "annotations": self._annotations(),
            },
            "spec": self._spec(layout, patch),
        }

    @property
    def point(self) -> str:
        """Where the client mounts, as it sees it."""
        return f"{_HOST}/{self.mount}"

    def _labels(self) -> dict[str, str]:
        return {
            **self._filled(self.pod.labels),
            "app.kubernetes.io/name": MOUNT_POD,
            "volume-id": unique_id(self.client.volume_id),
            "juicefs-hash": self.client.digest[:_LABEL_LENGTH],
        }

    def _annotations(self) -> dict[str, str]:
        found = {**self._filled(self.pod.annotations), UNIQUE_ID: unique_id(self.client.volume_id), MOUNT: self.mount}
        found[CLIENT] = replace(self.client, pod="").digest
        if self.client.delete_delay:
            found[DELETE_DELAY] = _duration(self.client.delete_delay)
        if self.client.clean_cache:
            found["juicefs-clean-cache"] = "true"
        return found | {reference(target): target for target in self.targets}

    def _spec(self, layout: Layout, patch: Mapping[str, Any]) -> dict[str, Any]:
        spec = {
            "nodeName": self.node,
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": patch.get("terminationGracePeriodSeconds", 10),
            "priorityClassName": "system-node-critical",
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [self._container(patch)],
            "volumes": [*_volumes(self, layout), *patch.get("volumes", ())],
        }
        if patch.get("hostnameKey") != "podname":
            spec["hostname"] = unique_id(self.client.volume_id).replace(".", "-")
        if self.pod.service_account:
            spec["serviceAccountName"] = self.pod.service_account
        return spec | {
            key: patch[key]
            for key in ("hostNetwork", "hostPID", "dnsPolicy", "dnsConfig", "initContainers")
            if key in patch
        }

    def _container(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        resources = dict(self.pod.resources)
        if not self.has_requests:
            resources["requests"] = {"cpu": "0", "memory": "0"}
        optional = ("imagePullPolicy", "livenessProbe", "readinessProbe", "volumeDevices")
        return {
            "name": CONTAINER,
            "image": self.pod.image,
            "command": ["/bin/sh", "-c", _literal(SCRIPT), CONTAINER],
            "args": ["/bin/mount.juicefs", "$(CSI_META_URL)", self.point, "-o", _literal(self._options(patch))],
            "env": [*self._environment(), *patch.get("env", ())],
            "envFrom": [{"secretRef": {"name": secret_name(self.client.volume_id)}}],
            "resources": resources,
            "securityContext": {"privileged": True, "runAsUser": 0},
            "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", LEAVE]}}, **patch.get("lifecycle", {})},
            "ports": [] if patch.get("hostNetwork") else [{"name": "metrics", "containerPort": self._metrics_port()}],
            "volumeMounts": [
                {"name": "jfs-dir", "mountPath": _HOST, "mountPropagation": "Bidirectional"},
                {"name": "jfs-fuse-fd", "mountPath": "/tmp"},  # noqa: S108 - the client's choice
                *({"name": cache.name, "mountPath": cache.path} for cache in self.caches()),
                *({"name": f"hostpath-{number}", "mountPath": path} for number, path in enumerate(self.host_paths())),
                *patch.get("volumeMounts", ()),
            ],
        } | {key: patch[key] for key in optional if key in patch}

    def _environment(self) -> list[dict[str, Any]]:
        secret = secret_name(self.client.volume_id)
        plain = {
            "JFS_INSIDE_CONTAINER": "1",
            "JFS_FOREGROUND": "1",
            "JFS_SUPER_COMM": "/tmp/comm.sock",  # noqa: S108 - as above
            "CSI_MOUNT_POINT": self.point,
            "CSI_CLEAN": _literal("\n".join(self._host_caches())) if self.client.clean_cache else "",
            **({} if self.is_new else {"CSI_FORMAT": ""}),
        }
        of_secret = ("CSI_META_URL", "CSI_FORMAT") if self.is_new else ("CSI_META_URL",)
        return [
            *({"name": key, "value": value} for key, value in plain.items()),
            *({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key in of_secret),
        ]

    def _host_caches(self) -> list[str]:
        """Only these outlive the pod (behaviour.md 4.12)."""
        return [cache.path for cache in self.caches() if "hostPath" in cache.source]

    def caches(self) -> list[CacheVolume]:
        """Those of the settings, with what their paths leave open."""
        key = "a cache directory"
        return [
            replace(cache, path=plain_path(self._filled(cache.path), key=key), source=self._filled(cache.source))
            for cache in self.pod.caches
        ]

    def host_paths(self) -> list[str]:
        """The same of paths of the host; one that is a cache is there already."""
        caches = {cache.path for cache in self.caches()}
        paths = [plain_path(self._filled(path), key="juicefs/host-path") for path in self.pod.host_paths]
        return [path for path in dict.fromkeys(paths) if path not in caches]

    def _options(self, patch: Mapping[str, Any]) -> str:
        metrics = "0.0.0.0:0" if patch.get("hostNetwork") else f"0.0.0.0:{_METRICS_PORT}"
        options = {"metrics": metrics} | dict(self.client.options)
        if self.client.subdir:
            options["subdir"] = str(self.client.subdir)
        filled = {key: self._filled(value) for key, value in options.items()}
        if wrong := next((key for key, value in filled.items() if "," in value), None):
            raise InvalidRequest(f"mount option {wrong}: its value, or the volume's subPath, can't hold ','")
        return ",".join(f"{key}={value}" if value else key for key, value in sorted(filled.items()))

    def _metrics_port(self) -> int:
        port = dict(self.client.options).get("metrics", "").rpartition(":")[2]
        return int(port) if port.isdigit() and int(port) else _METRICS_PORT

    def _filled(self, value: T) -> T:
        """With the template variables of behaviour.md 3.4."""
        filled: T = fill(value, variables(self.client, mount=self.mount, filesystem=self.filesystem))
        return filled


def variables(client: ClientSettings, *, mount: str, filesystem: str) -> dict[str, str]:
    """What stands for the template variables of behaviour.md 3.4."""
    return {
        "MOUNT_POINT": f"{_HOST}/{mount}",
        "VOLUME_ID": client.volume_id,
        "VOLUME_NAME": filesystem,
        "SUB_PATH": client.subdir.text,
    }


def _volumes(pod: MountPod, layout: Layout) -> Iterable[dict[str, Any]]:
    paths = layout.client(pod.mount)
    yield {"name": "jfs-dir", "hostPath": {"path": str(layout.mount_root), "type": "DirectoryOrCreate"}}
    # The node has made it before, with the hand-over socket in it: a pod that comes before that must not start.
    yield {"name": "jfs-fuse-fd", "hostPath": {"path": str(paths.directory), "type": "Directory"}}
    for cache in pod.caches():
        yield {"name": cache.name, **cache.source}
    for number, path in enumerate(pod.host_paths()):
        yield {"name": f"hostpath-{number}", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}


def pod_name(node: str, mount: str, *, after: str = "") -> str:
    """Name of a mount's pod, the same whoever asks; `after` is the UID of the pod whose place it takes."""
    if after:
        head, _, _ = mount.rpartition("-")
        mount = f"{head}-{letters(digest([mount, after]))}"
    name = f"juicefs-{node}-{mount}"
    if len(name) > _NAME_LENGTH:
        name = f"juicefs-{node[: _NAME_LENGTH - len(mount) - 23].rstrip('.-')}-{digest(node)[:12]}-{mount}"
    return name


def secret_name(volume_id: str) -> str:
    """Name of the Secret that a volume's clients get their environment from (behaviour.md 2.4)."""
    return f"juicefs-{unique_id(volume_id)}-secret"


def secret(fs: Filesystem, *, volume_id: str, namespace: str, owner: Owner) -> dict[str, Any]:
    """The environment of a volume's clients."""
    argv = Juicefs(binary=Path("juicefs")).format(fs).argv
    values = {key: value.reveal() for key, value in fs.environment.items()}
    values |= {"CSI_META_URL": fs.address, "CSI_FORMAT": "\n".join(argv[1:])}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(volume_id),
            "namespace": namespace,
            "labels": {OURS: "true"},
            "ownerReferences": [owner.to_json()],
        },
        "type": "Opaque",
        "data": {key: b64encode(value.encode("utf-8", "surrogateescape")).decode() for key, value in values.items()},
    }


def reference(target: str) -> str:
    """The annotation's key of a target (behaviour.md 4.5, C.1)."""
    return f"juicefs-{hashlib.sha256(target.encode()).hexdigest()}"[:_KEY_LENGTH]


def references(annotations: Mapping[str, str]) -> set[str]:
    """The targets that a mount pod's annotations name."""
    return {value for key, value in annotations.items() if key == reference(value)}


def _duration(seconds: float) -> str:
    """As Go writes it, which knows no exponents."""
    return f"{f'{seconds:.9f}'.rstrip('0').rstrip('.')}s"


def _literal(text: str) -> str:
    """What Kubernetes does not expand: it replaces $(NAME) in arguments."""
    return text.replace("$", "$$")
