"""The objects that users write, as plain JSON: pure functions."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

DRIVER: Final = "csi.juicefs.com"
IMAGE: Final = "juicefs-csi-node:dev"  # has sh and Python, and every cluster with the driver has it
REDIS: Final = "redis.juicefs-e2e.svc.cluster.local:6379"
PASSWORD: Final = "marker-of-the-suite"
# The default asks for a whole CPU and 1 GiB: two mount pods would fill a small machine.
FRUGAL: Final = {"juicefs/mount-cpu-request": "10m", "juicefs/mount-memory-request": "16Mi"}
SLEEP: Final = ("sh", "-c", "exec sleep infinity")
Object = dict[str, Any]


def metadata(name: str, namespace: str = "", **rest: Any) -> Object:
    return {"name": name, **({"namespace": namespace} if namespace else {}), **rest}


def secret(called: str, namespace: str, *, database: int, **changes: str | None) -> Object:
    """A file system in two databases of the suite's Redis; a change to None takes the key away."""
    keys: dict[str, str | None] = {
        "name": namespace,
        "metaurl": f"redis://:{PASSWORD}@{REDIS}/{2 * database}",
        "storage": "redis",
        "bucket": f"redis://{REDIS}/{2 * database + 1}",
        "secret-key": PASSWORD,
    }
    keys |= {key.replace("_", "-"): value for key, value in changes.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(called, namespace),
        "data": {key: b64encode(value.encode()).decode() for key, value in keys.items() if value is not None},
    }


def secret_parameters(name: str, namespace: str) -> dict[str, str]:
    purposes = ("provisioner", "node-publish", "controller-expand")
    return {
        f"csi.storage.k8s.io/{purpose}-secret-{part}": value
        for purpose in purposes
        for part, value in (("name", name), ("namespace", namespace))
    }


def storage_class(
    name: str, parameters: Mapping[str, str], *, case: str, options: Sequence[str] = (), **rest: Any
) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": metadata(name, labels={"case": case}),
        "provisioner": DRIVER,
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": True,
        "parameters": {**FRUGAL, **parameters},
        "mountOptions": list(options),
        **rest,
    }


def claim(name: str, namespace: str, *, storage_class: str, size: str = "1Gi", **spec: Any) -> Object:
    annotations = spec.pop("annotations", {})
    labels = spec.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(name, namespace, annotations=annotations, labels=labels),
        "spec": {
            "storageClassName": storage_class,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def volume(name: str, *, secret: tuple[str, str], attributes: Mapping[str, str], **rest: Any) -> Object:
    """A static PersistentVolume; `handle`, `mode`, `annotations` and fields of its spec may differ."""
    handle, mode, annotations = rest.pop("handle", name), rest.pop("mode", "ReadWriteMany"), rest.pop("annotations", {})
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": metadata(name, annotations=annotations, labels={"case": secret[1]}),
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": [mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "csi": {
                "driver": DRIVER,
                "volumeHandle": handle,
                "fsType": "juicefs",
                "nodePublishSecretRef": {"name": secret[0], "namespace": secret[1]},
                "volumeAttributes": {**FRUGAL, **attributes},
            },
            **rest,
        },
    }


def pod_spec(claims: Mapping[str, str], command: Sequence[str], **rest: Any) -> Object:
    """A pod with each claim at /<its name in the pod>."""
    mount = {"mountPropagation": rest.pop("propagation", "HostToContainer")}
    mount |= {"subPath": rest.pop("subpath")} if "subpath" in rest else {}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "app",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": list(command),
                "volumeMounts": [{"name": path, "mountPath": f"/{path}", **mount} for path in claims],
            }
        ],
        "volumes": [
            {"name": path, "persistentVolumeClaim": {"claimName": claim_name}} for path, claim_name in claims.items()
        ],
        **rest,
    }


def pod(name: str, namespace: str, spec: Object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(name, namespace, labels={"app": name}),
        "spec": spec,
    }


def deployment(name: str, namespace: str, spec: Object, *, replicas: int) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(name, namespace),
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    }
