"""One client a volume and machine: shared, counted, replaced, removed (behaviour.md 4 and 12)."""

import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from shared.kubernetes import PERSISTENT_VOLUMES, SECRETS
from tests.e2e import machine
from tests.e2e.case import Case
from tests.e2e.cluster import SYSTEM, kubectl, references, until
from tests.e2e.objects import PASSWORD

Make = Callable[..., Awaitable[str]]
KINDS = pytest.mark.parametrize("kind", ["dynamic", "static"])
OTHER_IMAGE = "juicefs-csi-mount:other"  # the same client under another tag


@pytest.fixture
def make(case: Case, kind: str) -> Make:
    """A claim `data` of that kind, from parameters and mount options."""

    async def made(parameters: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> str:
        if kind == "dynamic":
            return await case.dynamic(parameters, options=options)
        return await case.static(attributes=parameters, mountOptions=list(options))

    return made


async def test_delete_one(case: Case) -> None:
    """Three pods share one mount pod, which names three targets; when two leave, it names one."""
    volume = await case.dynamic()
    await case.deployment(replicas=3)
    await case.referenced(volume, 3)

    await case.scale(1)

    await case.referenced(volume, 1)


async def test_delete_all(case: Case) -> None:
    """With the last pod its mount pod goes."""
    volume = await case.dynamic()
    await case.deployment(replicas=2)

    await case.scale(0)

    await case.unused(volume)


async def test_names(case: Case) -> None:
    """Users' scripts find mount pods by these names, labels and annotations, and no secret in them."""
    volume = await case.dynamic()
    await case.running()

    pod = await case.referenced(volume, 1)

    metadata, node = pod["metadata"], pod["spec"]["nodeName"]
    assert re.fullmatch(rf"juicefs-{node}-{volume}-[a-z]{{6}}", metadata["name"])
    assert {"app.kubernetes.io/name", "volume-id", "juicefs-hash"} <= metadata["labels"].keys()
    assert metadata["annotations"]["juicefs-uniqueid"] == volume
    assert references(pod) == {await case.target(volume=volume)}
    assert "finalizers" not in metadata
    assert PASSWORD not in str(pod)


@KINDS
async def test_delete_pod(case: Case, make: Make) -> None:
    """A mount pod that was deleted comes back once, on the same path, and its user works on."""
    volume = await make()
    await case.writer("anew")
    before = await case.cluster.mount_pod(volume)
    mount = await case.mount_path(volume)

    await kubectl("delete", "pod", "--namespace", SYSTEM, before["metadata"]["name"], "--wait=false")

    await case.cluster.mount_pod(volume, but=before["metadata"]["uid"])
    await case.more(20)
    assert await case.mount_path(volume) == mount


async def test_mountpod_recreated(case: Case) -> None:
    """One that comes back keeps its hash and its references, and new pods find it."""
    volume = await case.dynamic()
    await case.running()
    before = await case.referenced(volume, 1)
    await case.write("/data/before", "written")
    await kubectl("delete", "pod", "--namespace", SYSTEM, before["metadata"]["name"], "--wait=false")
    await case.cluster.mount_pod(volume, but=before["metadata"]["uid"])

    await case.running("other")
    assert await case.exec("cat", "/data/before") == await case.exec("cat", "/data/before", pod="other") == "written"
    after = await case.referenced(volume, 2)

    assert after["metadata"]["labels"]["juicefs-hash"] == before["metadata"]["labels"]["juicefs-hash"]


@KINDS
async def test_patch_pv(case: Case, make: Make) -> None:
    """Changed mount options are for pods that start afterwards: they get a mount pod of their own."""
    volume = await make()
    await case.running()
    name = (await case.volume_object())["metadata"]["name"]
    await case.cluster.api.patch(PERSISTENT_VOLUMES, name, {"spec": {"mountOptions": ["subdir=patched"]}})

    async def second() -> bool:
        await case.running("other", within=30)
        if len(await case.cluster.mount_pods(volume)) == 2:
            return True
        await case.delete("other")
        return False

    await until(second, within=60, what="a second mount pod")
    await case.write("/data/new.txt", "written", pod="other")
    await case.write("/data/old.txt", "written")
    where = f"/{volume}" if "kubernetes.io/provisioned-by" in str(await case.volume_object()) else ""
    await case.holds(f"/patched{where}/new.txt", f"{where}/old.txt")


@KINDS
async def test_mount_image(case: Case, make: Make) -> None:
    """`juicefs/mount-image` is the image of the mount pod."""
    volume = await make({"juicefs/mount-image": OTHER_IMAGE})
    await case.running()

    pod = await case.cluster.mount_pod(volume)

    assert [container["image"] for container in pod["spec"]["containers"]] == [OTHER_IMAGE]


@KINDS
@pytest.mark.machine
async def test_cache_clean_upon_umount(case: Case, make: Make) -> None:
    """With `juicefs/clean-cache`, both cache directories are empty after the last user."""
    root = f"/var/lib/juicefs-e2e/{case.namespace}"
    volume = await make({"juicefs/clean-cache": "true"}, (f"cache-dir={root}/a:{root}/b",))
    await case.running()
    await case.exec("dd", "if=/dev/urandom", "of=/data/blob", "bs=1M", "count=64", "conv=fsync")
    await case.exec("dd", "if=/data/blob", "of=/dev/null", "bs=1M")  # only what is read is cached
    uuid = await until(lambda: _uuid(case, volume), what="juicefs-uuid")
    raw = [Path(root) / name / uuid / "raw" for name in "ab"]
    for directory in raw:
        await until(partial(machine.files, directory), within=20, what=f"something cached in {directory}")

    await case.delete()
    await case.unused(volume)

    await until(lambda: _is_empty(*raw), within=60, what="the cache emptied")
    await machine.remove_directories(Path(root))


async def _uuid(case: Case, volume: str) -> str:
    uuid: str = (await case.cluster.mount_pod(volume))["metadata"]["annotations"].get("juicefs-uuid", "")
    return uuid


async def _is_empty(*directories: Path) -> bool:
    return not any([await machine.files(directory) for directory in directories])


async def test_secret_has_owner_reference_dynamic(case: Case) -> None:
    """The mount pod's Secret goes with its PersistentVolume."""
    volume = await case.dynamic()
    await case.running()

    secret = await case.cluster.api.get(SECRETS, f"juicefs-{volume}-secret", namespace=SYSTEM)

    owner = (await case.volume_object())["metadata"]
    assert [reference["uid"] for reference in secret["metadata"]["ownerReferences"]] == [owner["uid"]]


async def test_mount_secret_not_updated_when_reused(case: Case) -> None:
    """A second pod changes nothing in the Secret of the mount pod."""
    volume = await case.dynamic()
    name = f"juicefs-{volume}-secret"
    await case.running()
    before = await case.cluster.api.get(SECRETS, name, namespace=SYSTEM)
    await case.running("other")
    await case.referenced(volume, 2)

    after = await case.cluster.api.get(SECRETS, name, namespace=SYSTEM)

    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_pod_resource_err(case: Case) -> None:
    """A mount pod that the machine has no room for starts without its requests."""
    sizes = {f"juicefs/mount-cpu-{which}": "10" for which in ("request", "limit")}
    sizes |= {f"juicefs/mount-memory-{which}": "50Gi" for which in ("request", "limit")}
    volume = await case.dynamic(sizes)
    await case.running(within=90)

    pod = await case.cluster.mount_pod(volume)
    requests = pod["spec"]["containers"][0]["resources"].get("requests", {})

    assert {requests.get(name, "0") for name in ("cpu", "memory")} == {"0"}


async def test_delete_delay(case: Case) -> None:
    """The mount pod waits for its next user, who cancels its end, and then as long again."""
    volume = await case.dynamic({"juicefs/mount-delete-delay": "30s"})
    await case.running()
    before = await case.cluster.mount_pod(volume)
    await case.delete()
    await until(lambda: _is_due(case, volume), within=10, what="the mount pod says when it will go")
    await case.running()
    await until(lambda: _is_due(case, volume, wanted=False), within=10, what="the mount pod stays")
    assert (await case.cluster.mount_pod(volume))["metadata"]["uid"] == before["metadata"]["uid"]
    await case.delete()
    await until(lambda: _is_due(case, volume), within=10, what="the mount pod says when it will go")

    await case.unused(volume, within=60)


async def _is_due(case: Case, volume: str, *, wanted: bool = True) -> bool:
    pods = await case.cluster.mount_pods(volume)
    return [("juicefs-delete-at" in pod["metadata"]["annotations"]) for pod in pods] == [wanted]


async def test_events(case: Case) -> None:
    """The workload's own events tell how its volume came to be."""
    await case.dynamic()
    await case.running()

    await case.described("pod", "app", "MountReady")


async def test_evicted(case: Case) -> None:
    """A mount pod that is evicted while in use comes back once."""
    volume = await case.dynamic()
    await case.writer("anew")
    before = (await case.cluster.mount_pod(volume))["metadata"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": before["name"], "namespace": SYSTEM},
    }
    path = f"/api/v1/namespaces/{SYSTEM}/pods/{before['name']}/eviction"
    await kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))

    await case.cluster.mount_pod(volume, but=before["uid"])

    await case.more(20)
