"""One case: a namespace, a file system, and what a user makes there."""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shared.kubernetes import CLAIMS, EVENTS, PERSISTENT_VOLUMES, PODS, SECRETS
from tests.e2e import objects, writer
from tests.e2e.cluster import DEPLOYMENTS, SYSTEM, Cluster, is_ready, kubectl, references, until
from tests.e2e.objects import Object


@dataclass(kw_only=True)
class Case:
    """Names of what belongs to no namespace begin with the case's: several cases run side by side."""

    cluster: Cluster
    namespace: str
    database: int
    figures: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)  # handles that were seen

    # ---- what a user writes

    async def secret(self, called: str = "secret", **changes: str | None) -> None:
        await self.cluster.apply(objects.secret(called, self.namespace, database=self.database, **changes))

    def secrets(self) -> dict[str, str]:
        """What kubelet would send along."""
        made = objects.secret("secret", self.namespace, database=self.database)
        return {key: b64decode(value).decode() for key, value in made["data"].items()}

    async def remove_secret(self, called: str = "secret") -> None:
        await self.cluster.api.delete(SECRETS, called, namespace=self.namespace)

    async def storage_class(self, parameters: Mapping[str, str] | None = None, **rest: Any) -> str:
        """A StorageClass of this case's Secret, both made now."""
        name = f"{self.namespace}{rest.pop('suffix', '')}"
        secrets = objects.secret_parameters("secret", self.namespace)
        made = objects.storage_class(name, {**secrets, **(parameters or {})}, case=self.namespace, **rest)
        await self.cluster.apply(objects.secret("secret", self.namespace, database=self.database), made)
        return name

    async def claim(self, name: str = "data", *, size: str = "1Gi", **spec: Any) -> str:
        """A bound claim of this case's StorageClass; answers the volume's handle."""
        await self.pending_claim(name, size=size, **spec)
        return await self.bound(name)

    async def dynamic(self, parameters: Mapping[str, str] | None = None, **rest: Any) -> str:
        """Secret, StorageClass and a bound claim `data`."""
        await self.storage_class(parameters, **rest)
        return await self.claim()

    async def static(self, name: str = "data", attributes: Mapping[str, str] | None = None, **rest: Any) -> str:
        """Secret, a PersistentVolume and a claim of it."""
        volume = f"{self.namespace}-{name}"
        mode = rest.get("mode", "ReadWriteMany")
        await self.cluster.apply(
            objects.secret("secret", self.namespace, database=self.database),
            objects.volume(volume, secret=("secret", self.namespace), attributes=attributes or {}, **rest),
            objects.claim(name, self.namespace, storage_class="", volumeName=volume, accessModes=[mode]),
        )
        return await self.bound(name)

    async def pod(self, name: str = "app", command: Sequence[str] = objects.SLEEP, **rest: Any) -> None:
        """A pod that needs not be ready yet; `claims` maps names in the pod to claims."""
        claims = rest.pop("claims", {"data": "data"})
        await self.cluster.apply(objects.pod(name, self.namespace, objects.pod_spec(claims, command, **rest)))

    async def running(self, name: str = "app", command: Sequence[str] = objects.SLEEP, **rest: Any) -> None:
        within = rest.pop("within", 60.0)
        await self.pod(name, command, **rest)
        await self.ready(name, within=within)

    async def deployment(self, name: str = "app", *, replicas: int = 1, **rest: Any) -> None:
        """Waits until all of its pods are ready."""
        claims, command = rest.pop("claims", {"data": "data"}), rest.pop("command", objects.SLEEP)
        within = rest.pop("within", 60.0)
        spec = objects.pod_spec(claims, command, **rest)
        await self.cluster.apply(objects.deployment(name, self.namespace, spec, replicas=replicas))
        await self.ready(name, count=replicas, within=within)

    async def pods_of(self, claims: Sequence[str]) -> None:
        """One pod for each, all at once; they need not be ready yet."""
        made = [
            objects.pod(f"app-{number}", self.namespace, objects.pod_spec({"data": claim}, objects.SLEEP))
            for number, claim in enumerate(claims)
        ]
        await self.cluster.apply(*made)

    async def all_ready(self, count: int, *, within: float) -> None:
        """So many pods of any name are."""

        async def answer() -> bool:
            pods = await self.cluster.pods(namespace=self.namespace)
            waiting = [pod["metadata"]["name"] for pod in pods if not is_ready(pod)]
            assert not waiting, waiting
            return len(pods) == count

        await until(answer, within=within, what=f"{count} ready pods")

    async def starting(self, count: int) -> None:
        """So many pods became ready, while the others don't have their volume yet."""

        async def answer() -> bool:
            pods = await self.cluster.pods(namespace=self.namespace)
            return len([pod for pod in pods if is_ready(pod)]) >= count

        await until(answer, within=120, what=f"{count} pods started")

    async def scale(self, replicas: int, name: str = "app") -> None:
        """Waits until the others are gone."""
        await self.cluster.api.patch(DEPLOYMENTS, name, {"spec": {"replicas": replicas}}, namespace=self.namespace)
        await until(lambda: self._count(name, replicas), what=f"{replicas} pods of {name}")

    async def delete(self, name: str = "app") -> None:
        """A pod; waits until it is gone, so unpublished."""
        await kubectl("delete", "pod", name, "--namespace", self.namespace, "--wait", "--timeout=60s")

    async def pending_claim(self, name: str = "data", **spec: Any) -> None:
        """A claim that needs not be bound."""
        spec.setdefault("storage_class", self.namespace)
        await self.cluster.apply(objects.claim(name, self.namespace, **spec))

    async def delete_claim(self, name: str) -> None:
        await kubectl("delete", "pvc", name, "--namespace", self.namespace, "--timeout=60s")

    async def grow(self, claim: str, size: str) -> None:
        body = {"spec": {"resources": {"requests": {"storage": size}}}}
        await self.cluster.api.patch(CLAIMS, claim, body, namespace=self.namespace)

    # ---- what a user sees

    async def bound(self, claim: str) -> str:
        async def handle() -> str:
            found = await self.cluster.api.get(CLAIMS, claim, namespace=self.namespace)
            name = found["spec"].get("volumeName", "") if found["status"].get("phase") == "Bound" else ""
            volume = await self.cluster.api.get(PERSISTENT_VOLUMES, name) if name else None
            return volume["spec"]["csi"]["volumeHandle"] if volume else ""

        volume = await until(handle, within=60, what=f"claim {claim} bound")
        self.volumes.append(volume)
        return volume

    async def capacity(self, claim: str) -> str:
        found = await self.cluster.api.get(CLAIMS, claim, namespace=self.namespace)
        size: str = found["status"].get("capacity", {}).get("storage", "")
        return size

    async def pods(self, name: str = "app") -> list[Object]:
        return await self.cluster.pods(namespace=self.namespace, labels=f"app={name}")

    async def ready(self, name: str = "app", *, count: int = 1, within: float = 60.0) -> list[Object]:
        async def answer() -> list[Object]:
            pods = [pod for pod in await self.pods(name) if is_ready(pod)]
            return pods if len(pods) == count else []

        return await until(answer, within=within, what=f"{count} ready pods of {name}")

    async def exec(self, *argv: str, pod: str = "app") -> str:
        return await self.cluster.exec(pod, *argv, namespace=self.namespace)

    async def write(self, path: str, text: str, pod: str = "app") -> None:
        await self.exec("sh", "-c", 'printf %s "$1" >"$0"', path, text, pod=pod)

    async def df(self, pod: str = "app") -> str:
        return (await self.exec("df", "-h", "--output=size", "/data", pod=pod)).split()[-1]

    async def volume_object(self, claim: str = "data") -> Object:
        found = await self.cluster.api.get(CLAIMS, claim, namespace=self.namespace)
        return await self.cluster.api.get(PERSISTENT_VOLUMES, found["spec"]["volumeName"])

    async def released(self, name: str) -> None:
        async def answer() -> bool:
            found = await self.cluster.api.get(PERSISTENT_VOLUMES, name)
            return bool(found["status"]["phase"] == "Released")

        await until(answer, what=f"{name} is released")

    async def mount_path(self, volume: str) -> str:
        """The mount point of the volume's only client."""
        points = {entry.mount_point for entry in await self.cluster.mounts(f"/volume/{volume}-")}
        assert len(points) == 1, points
        return points.pop()

    async def described(self, kind: str, name: str, *words: str, within: float = 60.0) -> None:
        """`kubectl describe` shows all of these words among the events."""

        async def shows() -> bool:
            text = await kubectl("describe", kind, name, "--namespace", self.namespace)
            events = text.rpartition("\nEvents:")[2]
            missing = [word for word in words if word not in events]
            assert not missing, f"{missing} not in {events}"
            return True

        await until(shows, within=within, what=f"{words} in kubectl describe {kind} {name}")

    async def target(self, pod: str = "app", volume: str = "") -> str:
        """Where kubelet has the volume for this pod."""
        found = await self.cluster.api.get(PODS, pod, namespace=self.namespace)
        volume = volume or self.volumes[0]
        return f"/var/lib/kubelet/pods/{found['metadata']['uid']}/volumes/kubernetes.io~csi/{volume}/mount"

    async def referenced(self, volume: str, count: int) -> Object:
        """The one mount pod of the volume, when its annotations name so many targets."""

        async def answer() -> Object | None:
            pod = await self.cluster.mount_pod(volume)
            assert len(references(pod)) == count, references(pod)
            return pod

        return await until(answer, within=30, what=f"{count} references on the mount pod of {volume}")

    async def unused(self, volume: str, *, within: float = 60.0) -> None:
        """No mount pod of the volume nor a mount of it is there any more. Its Secret goes with the PersistentVolume."""

        async def answer() -> bool:
            assert not await self.cluster.mount_pods(volume), "a mount pod"
            assert not await self.cluster.mounts(volume), "a mount"
            return True

        await until(answer, within=within, what=f"nothing uses {volume}")

    async def tree(self) -> dict[str, int]:
        """What is in the file system, from its metadata engine: each path with its length."""
        dump = json.loads(await self.cluster.juicefs("dump", "META", "--skip-trash", database=self.database))
        found: dict[str, int] = {}

        def walk(node: Object, path: str) -> None:
            for name, entry in (node.get("entries") or {}).items():
                found[f"{path}/{name}"] = entry["attr"]["length"]
                walk(entry, f"{path}/{name}")

        walk(dump["FSTree"], "")
        return found

    async def holds(self, *paths: str, without: Sequence[str] = (), within: float = 60.0) -> None:
        """The file system has these paths, and not those."""

        async def answer() -> bool:
            tree = await self.tree()
            assert all(path in tree for path in paths), tree
            assert not any(path in tree for path in without), tree
            return True

        await until(answer, within=within, what=f"{paths} in the file system, without {without}")

    async def writer(self, kind: str, name: str = "app", **rest: Any) -> None:
        """A pod that runs `tests.e2e.writer` on the volume."""
        source = Path(writer.__file__).read_text()
        await self.running(name, ("python3", "-c", source, kind, "/data"), **rest)
        await until(lambda: self.rounds(name), what="the writer writes")

    async def rounds(self, name: str = "app") -> dict[str, Any]:
        """The report of a writer, so far; empty before its first round."""
        try:
            text = await self.exec("cat", "/tmp/report", pod=name)
        except AssertionError:
            return {}
        report: dict[str, Any] = json.loads(text)
        return report

    async def more(self, count: int = 3, name: str = "app", *, within: float = 60.0) -> dict[str, Any]:
        """The writer's report when it has done so many more rounds, none of which failed."""
        before = (await self.rounds(name))["rounds"]

        async def advanced() -> dict[str, Any] | None:
            report = await self.rounds(name)
            return report if report.get("rounds", 0) >= before + count else None

        report = await until(advanced, within=within, what=f"{count} more rounds of the writer")
        assert not report["errors"], report
        return report

    # ---- the end

    async def close(self) -> None:
        """Workloads first, then claims: a volume is deleted with a Secret that is still there."""
        where = ("--namespace", self.namespace, "--timeout=90s")
        await kubectl("delete", "deployment,pod,job", "--all", *where, deadline=100)
        handles = set(self.volumes)
        await kubectl("delete", "pvc", "--all", *where, deadline=100)
        await until(self._released, within=60, what="volumes of deleted claims gone")
        await kubectl("delete", "storageclass,pv", "--selector", f"case={self.namespace}", "--timeout=60s")
        for volume in handles:
            await self.unused(volume, within=180)  # one that never came up is waited for
            secret = f"juicefs-{volume}-secret"
            await until(partial(self.cluster.is_gone, SECRETS, secret, namespace=SYSTEM), what=f"{secret} is gone")
        await kubectl("delete", "namespace", self.namespace, "--timeout=60s", "--wait=false")

    async def events(self) -> list[Object]:
        found: list[Object] = (await self.cluster.api.list(EVENTS, namespace=self.namespace))["items"]
        return found

    async def _released(self) -> bool:
        volumes = (await self.cluster.api.list(PERSISTENT_VOLUMES))["items"]
        mine = [volume for volume in volumes if _claims_namespace(volume) == self.namespace]
        return all(volume["spec"]["persistentVolumeReclaimPolicy"] != "Delete" for volume in mine)

    async def _count(self, name: str, replicas: int) -> bool:
        return len(await self.pods(name)) == replicas


def _claims_namespace(volume: Object) -> str:
    namespace: str = volume["spec"].get("claimRef", {}).get("namespace", "")
    return namespace
