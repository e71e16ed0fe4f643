"""After all cases: nothing was told, nothing is left; and the driver's own end disturbs nobody."""

import json
from pathlib import Path

import pytest

from shared.kubernetes import SECRETS
from tests.e2e import driver
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, Cluster, is_ready, kubectl, until
from tests.e2e.objects import PASSWORD

pytestmark = [pytest.mark.last, pytest.mark.timeout(400)]
OURS = "app.kubernetes.io/instance=juicefs-csi-driver"
SERVICES = {driver.CONTROLLER, driver.MOUNTPOD, driver.NODE}
OVERLAY = "deploy/overlays/e2e"


async def test_no_secret_was_told(cluster: Cluster) -> None:
    """The password of every case is in no log, event, bus message or metric (promise 22)."""
    where = ("--namespace", SYSTEM)
    told = {"events": await kubectl("get", "events", "--all-namespaces", "--output", "json")}
    tap = ("juicefs-csi-tap", "--since", "24h", "--no-follow", "--json")
    told["bus"] = await kubectl("exec", *where, "deployment/juicefs-csi-tap", "--", *tap)
    for pod in await cluster.pods(labels=OURS):
        name = pod["metadata"]["name"]
        told[f"log of {name}"] = await kubectl("logs", *where, name, "--all-containers")
        metrics = f"/api/v1/namespaces/{SYSTEM}/pods/{name}:9909/proxy/metrics"
        told[f"metrics of {name}"] = await kubectl(
            "get", "--raw", metrics, check=pod["metadata"]["labels"]["app"] in SERVICES
        )

    assert [place for place, text in told.items() if PASSWORD in text] == []
    assert all(told[place] for place in ("events", "bus"))


async def test_nothing_is_left(cluster: Cluster) -> None:
    """No mount pod, no Secret of one, no mount, no client's directory, and only the services are on the bus."""

    async def answer() -> bool:
        assert not await cluster.pods(labels="app.kubernetes.io/name=juicefs-mount")
        assert not (await cluster.api.list(SECRETS, labels="juicefs/secret=true"))["items"]
        assert [entry.mount_point for entry in await cluster.mounts()] == []
        assert await _on_the_bus() == len(await cluster.pods(labels=f"{OURS},app!=juicefs-csi-nats"))
        return True

    await until(answer, within=30, what="nothing left")
    if cluster.machine:
        kept = [Path("/run/juicefs-csi/clients"), Path("/run/juicefs-csi/targets"), Path("/var/lib/juicefs/volume")]
        assert [str(path) for directory in kept if directory.is_dir() for path in directory.iterdir()] == []


async def _on_the_bus() -> int:
    path = f"/api/v1/namespaces/{SYSTEM}/pods/juicefs-csi-nats-0:8222/proxy/connz"
    connections: int = json.loads(await kubectl("get", "--raw", path))["num_connections"]
    return connections


async def test_uninstall(case: Case) -> None:
    """`kubectl delete -k` leaves running mounts working, and the driver that comes back finds them."""
    volume = await case.dynamic()
    await case.writer("held")
    before = (await case.cluster.mount_pod(volume))["metadata"]["uid"]
    await kubectl("delete", "--kustomize", OVERLAY, "--timeout=120s", deadline=130)
    try:
        await until(lambda: _is_uninstalled(case.cluster), within=60, what="no pod of the driver")
        await case.more(20)
    finally:
        await kubectl("apply", "--kustomize", OVERLAY)
        await until(lambda: _is_installed(case.cluster), within=120, what="the driver ready")

    await case.running("second", within=90)
    assert (await case.referenced(volume, 2))["metadata"]["uid"] == before
    await case.more(10)


async def _is_uninstalled(cluster: Cluster) -> bool:
    return not await cluster.pods(labels=OURS)


async def _is_installed(cluster: Cluster) -> bool:
    pods = await cluster.pods(labels=OURS)
    return len(pods) >= 7 and all(is_ready(pod) for pod in pods)
