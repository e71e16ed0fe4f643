"""The controller as a program, with the rights that it has in a cluster and no more."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.kubernetes import CLAIMS, Kind
from tests.api.claiming import MARK, Stage, eventually, staged
from tests.api_server import ApiServer
from tests.integration.controlling import BINARY

pytestmark = pytest.mark.timeout(120)
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLES = Kind(path=_RBAC, plural="clusterroles")
BINDINGS = Kind(path=_RBAC, plural="clusterrolebindings")
RIGHTS = (
    ("", "persistentvolumes", ["list", "watch", "get", "create", "patch", "delete"]),
    ("", "persistentvolumeclaims", ["list", "watch"]),
    ("", "persistentvolumeclaims/status", ["patch"]),
    ("storage.k8s.io", "storageclasses", ["list", "watch"]),
    ("", "secrets", ["get", "patch"]),
    ("", "nodes", ["get"]),
    ("", "events", ["create", "patch"]),
    ("coordination.k8s.io", "leases", ["get", "create", "update"]),
)
"""What docs/USER-GUIDE.md says. Secrets are patched for `secretFinalizer`, nodes read for their templates, only."""


@pytest.fixture
async def stage(server: ApiServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(server, tmp_path) as stage:
        stage.driver = "csi.juicefs.com"
        rules = [{"apiGroups": [group], "resources": [kind], "verbs": verbs} for group, kind, verbs in RIGHTS]
        await stage.api.create(ROLES, {"metadata": {"name": stage.name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": stage.name}
        subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}]
        await stage.api.create(BINDINGS, {"metadata": {"name": stage.name}, "roleRef": role, "subjects": subjects})
        yield stage
        await stage.api.delete(BINDINGS, stage.name)
        await stage.api.delete(ROLES, stage.name)


@contextmanager
def running(server: ApiServer, directory: Path) -> Iterator[int]:
    """The program's number."""
    options = (
        *("--provisioner", "--resizer", "--namespace", "default", "--workers", "5", "--identity", "me"),
        *("--kubeconfig", str(server.nobody), "--endpoint", f"unix://{directory}/csi.sock", "--juicefs", str(BINARY)),
    )
    with (directory / "log").open("wb") as log:
        argv = [sys.executable, "-m", "services.controller", *options]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield process.pid
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0


async def test_the_program_serves_claims_with_the_rights_it_has(
    server: ApiServer, stage: Stage, tmp_path: Path
) -> None:
    """Promise 23, and 22: a whole life, and no secret in what it printed."""
    await stage.make_secret()
    more = {"volumeBindingMode": "WaitForFirstConsumer"}
    await stage.make_class({"secretFinalizer": "true", "pathPattern": "${.pvc.name}${.node.name}"}, more=more)
    with running(server, tmp_path):
        chosen = {"volume.kubernetes.io/selected-node": "nosuchnode"}
        await stage.claim("lost", annotations=chosen)
        assert "nosuchnode" in await stage.event(stage.of("lost"), "ProvisioningFailed")
        await stage.make_class(name=f"{stage.name}-now", parameters={"secretFinalizer": "true"})
        name = await stage.bound("a", spec={"storageClassName": f"{stage.name}-now"})
        body = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
        await stage.api.patch(CLAIMS, stage.of("a"), body, namespace="default")
        await stage.event(stage.of("a"), "VolumeResizeSuccessful")
        await stage.unclaim("a", name)
        await stage.gone(name)
    printed = (tmp_path / "log").read_text()
    assert "claim provisioned" in printed
    assert MARK not in printed
    assert "is forbidden" not in printed


async def test_who_serves_no_claims_loads_no_kubernetes() -> None:
    """Memory."""
    lines = "import sys, services.controller.__main__; print([name for name in sys.modules if 'kubernetes' in name])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", lines, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert printed.strip() == b"[]"


async def test_a_right_that_is_missing_is_named(server: ApiServer, tmp_path: Path) -> None:
    """Promise 25: the program goes on, and tells what it lacks."""
    with running(server, tmp_path):

        async def told() -> bool:
            return "leases" in (tmp_path / "log").read_text()

        await eventually(told)
    assert "forbidden" in (tmp_path / "log").read_text()
