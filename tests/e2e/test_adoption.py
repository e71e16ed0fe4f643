"""Mount pods of the driver before this one (behaviour.md 4.2, 4.5, 4.7): they serve until their users leave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.errors import NotFound
from shared.kubernetes import PODS
from tests.e2e import machine
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, reference_key, run, until
from tests.e2e.objects import Object, metadata

CLIENT_IMAGE = "juicefs-csi-mount:dev"


@pytest.mark.machine
async def test_adopted(case: Case) -> None:
    """It stays while its target is bound, beside ours for new pods, and goes with its last user."""
    volume = await case.static()
    async with machine.target(volume) as target, machine.kubelet() as kubelet, _before(case, volume, target) as name:
        await case.running()
        assert len(await case.cluster.mount_pods(volume)) == 2
        await case.write("/data/out.txt", "written")
        await case.delete()
        await until(lambda: _is_alone(case, volume, name), what="ours is gone, the one before stays")
        assert await run("cat", str(target / "out.txt")) == "written"

        await kubelet.unpublish(volume, target)

        await until(lambda: case.cluster.is_gone(PODS, name, namespace=SYSTEM), what="the one before is gone")
        assert not await case.cluster.mounts(str(target))
    await case.unused(volume)


async def _is_alone(case: Case, volume: str, name: str) -> bool:
    return [pod["metadata"]["name"] for pod in await case.cluster.mount_pods(volume)] == [name]


@asynccontextmanager
async def _before(case: Case, volume: str, target: Path) -> AsyncIterator[str]:
    """A mount pod made as that driver makes it, with a bind at the target that it names."""
    pod = _mount_pod(case, volume, str(target), node=await _node(case))
    name = pod["metadata"]["name"]
    await case.cluster.apply(pod)
    try:
        await until(lambda: _is_mounted(case, volume), what="its client")
        target.mkdir(parents=True)
        await run("mount", "--bind", f"/var/lib/juicefs/volume/{volume}-abcdef", str(target))
        yield name
    finally:
        for mount in await case.cluster.mounts(str(target)):
            await run("umount", "--lazy", mount.mount_point)
        await _remove(case, name)


async def _remove(case: Case, name: str) -> None:
    try:
        await case.cluster.api.delete(PODS, name, namespace=SYSTEM)
        await case.cluster.api.patch(PODS, name, {"metadata": {"finalizers": None}}, namespace=SYSTEM)
    except NotFound:
        return


async def _node(case: Case) -> str:
    node: str = (await case.cluster.pods(labels="app=juicefs-csi-node"))[0]["spec"]["nodeName"]
    return node


async def _is_mounted(case: Case, volume: str) -> bool:
    return bool(await case.cluster.mounts(f"/var/lib/juicefs/volume/{volume}-abcdef"))


def _mount_pod(case: Case, volume: str, target: str, *, node: str) -> Object:
    path = f"/jfs/{volume}-abcdef"
    script = (
        '/usr/local/bin/juicefs format --storage=redis --bucket="$bucket" --secret-key="$secretkey" "$metaurl" '
        f"{case.namespace}\nexec /bin/mount.juicefs ${{metaurl}} {path} -o metrics=0.0.0.0:9567"
    )
    secrets = case.secrets()
    environment = {"metaurl": secrets["metaurl"], "secretkey": secrets["secret-key"], "bucket": secrets["bucket"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(
            f"juicefs-{node}-{volume}-abcdef",
            SYSTEM,
            labels={
                "app.kubernetes.io/name": "juicefs-mount",
                "volume-id": volume,
                "juicefs-hash": "0" * 63,
                "juicefs-upgrade-uuid": "5d1c3f0e-0000-4000-8000-000000000001",
            },
            annotations={"juicefs-uniqueid": volume, reference_key(target): target},
            finalizers=["juicefs.com/finalizer"],
        ),
        "spec": {
            "nodeName": node,
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": 10,
            "containers": [
                {
                    "name": "jfs-mount",
                    "image": CLIENT_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    "securityContext": {"privileged": True, "runAsUser": 0},
                    "env": [
                        {"name": key, "value": value}
                        for key, value in {**environment, "JFS_FOREGROUND": "1", "JFS_INSIDE_CONTAINER": "1"}.items()
                    ],
                    "volumeMounts": [{"name": "jfs-dir", "mountPath": "/jfs", "mountPropagation": "Bidirectional"}],
                }
            ],
            "volumes": [
                {"name": "jfs-dir", "hostPath": {"path": "/var/lib/juicefs/volume", "type": "DirectoryOrCreate"}}
            ],
        },
    }
