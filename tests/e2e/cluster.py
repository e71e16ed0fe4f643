"""The cluster as its users and its admin see it: kubectl, the API, and the mount table of its machine."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

from shared.errors import DriverError, NotFound
from shared.kubernetes import NODES, PODS, Kind, Kubernetes
from shared.mounttable import MountEntry, MountTable
from tests.e2e.objects import Object

T = TypeVar("T")

SYSTEM = "kube-system"
DEPLOYMENTS = Kind(path="/apis/apps/v1", plural="deployments", is_namespaced=True)
TABLE = MountTable()


async def until(probe: Callable[[], Awaitable[T | None]], *, within: float = 60.0, what: str) -> T:
    """The first true answer; an AssertionError counts as none. What it answered last is in the error."""
    deadline = time.monotonic() + within
    while True:
        try:
            answer: Any = await probe()
            if answer:
                return answer  # type: ignore[no-any-return] # of the probe's type
        except AssertionError as error:
            answer = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what}; the last answer was {str(answer)[:2000]}")
        await asyncio.sleep(0.2)


async def run(*argv: str, stdin: str = "", deadline: float = 90.0, check: bool = True) -> str:
    """What the program prints; its errors too, when it may fail."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if check else asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(deadline):
            output, errors = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise AssertionError(f"no end within {deadline:.0f} s: {argv}") from None
    if check and process.returncode:
        raise AssertionError(f"{argv} failed: {errors.decode()[-2000:]}")
    return output.decode()


async def kubectl(*argv: str, stdin: str = "", deadline: float = 90.0, check: bool = True) -> str:
    return await run("kubectl", *argv, stdin=stdin, deadline=deadline, check=check)


def references(mount_pod: Object) -> set[str]:
    """The targets that a mount pod's annotations name (behaviour.md 4.5)."""
    annotations = mount_pod["metadata"].get("annotations", {})
    return {target for key, target in annotations.items() if key == reference_key(target)}


def reference_key(target: str) -> str:
    return f"juicefs-{hashlib.sha256(target.encode()).hexdigest()}"[:63]


def is_ready(pod: Object) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


@dataclass(kw_only=True)
class Cluster:
    """`machine` is the home of the one-node cluster on this machine, or empty for any other cluster."""

    api: Kubernetes
    machine: str

    async def apply(self, *objects: Object) -> None:
        """As a user does: several at once, in one file."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        await kubectl("apply", "--filename", "-", stdin=document)

    async def exec(self, pod: str, *argv: str, namespace: str = SYSTEM, container: str = "") -> str:
        where = ("--container", container) if container else ()
        return await kubectl("exec", "--namespace", namespace, pod, *where, "--", *argv)

    async def pods(self, *, namespace: str = SYSTEM, labels: str = "") -> list[Object]:
        found: list[Object] = (await self.api.list(PODS, namespace=namespace, labels=labels))["items"]
        return found

    async def mount_pods(self, volume: str) -> list[Object]:
        return await self.pods(labels=f"app.kubernetes.io/name=juicefs-mount,volume-id={volume}")

    async def mount_pod(self, volume: str, *, within: float = 60.0, but: str = "") -> Object:
        """The only mount pod of a volume, when it is ready; `but` is the UID of the one before it."""

        async def ready() -> Object | None:
            pods = await self.mount_pods(volume)
            is_new = len(pods) == 1 and pods[0]["metadata"]["uid"] != but
            return pods[0] if is_new and is_ready(pods[0]) else None

        return await until(ready, within=within, what=f"one ready mount pod of {volume}")

    async def is_gone(self, kind: Kind, name: str, *, namespace: str = "") -> bool:
        try:
            await self.api.get(kind, name, namespace=namespace)
        except NotFound:
            return True
        return False

    async def answers(self) -> bool:
        """The API server does."""
        try:
            await self.api.list(NODES)
        except DriverError:
            return False
        return True

    async def mounts(self, having: str = "") -> list[MountEntry]:
        """JuiceFS mounts of this machine, or of all, whose mount point has this text in it."""
        tables = [TABLE.clients()] if self.machine else [await self._clients(node) for node in await self.nodes()]
        return [entry for table in tables for entry in table if having in entry.mount_point]

    async def nodes(self) -> list[str]:
        """The node service's pods."""
        return [pod["metadata"]["name"] for pod in await self.pods(labels="app=juicefs-csi-node")]

    async def _clients(self, node: str) -> list[MountEntry]:
        with NamedTemporaryFile("w") as copy:
            copy.write(await self.exec(node, "cat", "/proc/self/mountinfo"))
            copy.flush()
            return MountTable(Path(copy.name)).clients()

    async def juicefs(self, *argv: str, database: int) -> str:
        """The client's command line, with META for the metadata engine of a case: it mounts nothing."""
        meta = f"redis://localhost:6379/{2 * database}"
        command = ("juicefs", *(meta if word == "META" else word for word in argv))
        return await self.exec("deployment/redis", *command, namespace="juicefs-e2e", container="juicefs")
