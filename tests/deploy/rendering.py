"""What Kustomize makes of deploy/."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BINARIES = Path(os.environ.get("CLUSTER_HOME", "/var/lib/one-node-cluster")) / "bin"
OVERLAYS = ("mount-pod", "official-sidecars", "e2e")
COMPONENTS = ("nats-tls", "monitoring")
"""Those that no overlay has: they go on top of one."""

Object = dict[str, Any]


def binary(name: str) -> Path | None:
    """A program of Kubernetes, of the one-node cluster's or on PATH."""
    found = shutil.which(name, path=f"{BINARIES}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found else None


def kustomization(name: str, directory: Path) -> Path:
    """The directory of an overlay; for a component, one made below `directory` that adds it to the default overlay."""
    if name in OVERLAYS:
        return DEPLOY / "overlays" / name
    place = directory / name
    place.mkdir(exist_ok=True)
    base = os.path.relpath(DEPLOY, place)
    lines = (f"resources: [{base}/overlays/mount-pod]", f"components: [{base}/components/{name}]")
    (place / "kustomization.yaml").write_text("\n".join(lines))
    return place


@cache
def rendered(directory: Path) -> tuple[Object, ...]:
    """The objects of a kustomization."""
    program = binary("kubectl")
    assert program is not None
    text = subprocess.check_output([program, "kustomize", directory], text=True)
    return tuple(yaml.safe_load_all(text))


def of_kind(objects: tuple[Object, ...], *kinds: str) -> dict[str, Object]:
    """By name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] in kinds}


def workloads(objects: tuple[Object, ...]) -> dict[str, Object]:
    """The pod specifications, by the name of what makes the pods."""
    made = of_kind(objects, "StatefulSet", "DaemonSet", "Deployment", "Job")
    return {name: found["spec"]["template"]["spec"] for name, found in made.items()}


def containers(pod: Object) -> dict[str, Object]:
    """All of a pod's containers, those that run first too."""
    return {one["name"]: one for one in [*pod.get("initContainers", ()), *pod["containers"]]}
