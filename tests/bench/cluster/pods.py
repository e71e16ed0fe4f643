"""Publishes as kubelet sees them, and what the users of pods see."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

from shared.kubernetes import PODS
from tests.bench.cluster.place import STARTED, Place, place, until
from tests.bench.floors import BareBind, bare_server
from tests.bench.rows import Row, Tell, alternate, latency
from tests.e2e import objects
from tests.e2e.cluster import DEPLOYMENTS
from tests.e2e.objects import Object

_STARTS: Final = 10
_WARM: Final = 15
_BURSTS: Final = 2
_ONE: Final = 20
_EACH: Final = 10
_IMAGE: Final = "juicefs-csi-mount:dev"
_CLIENT: Final = """
juicefs format "$META" "$NAME" --storage redis --bucket "$BUCKET" || exit
mkdir /mnt/jfs && exec juicefs mount "$META" /mnt/jfs --metrics=127.0.0.1:0
"""
_KEYS: Final = {"META": "metaurl", "NAME": "name", "BUCKET": "bucket", "SECRET_KEY": "secret-key"}
_MOUNTED: Final = "is ready at"


async def cold(tell: Tell) -> list[Row]:
    """Publish that makes a mount pod, beside a plain pod of its image that formats and mounts by itself."""
    whole, plain, ends = list[float](), list[float](), list[float]()
    async with place("cold") as here:
        volume = await here.case.claim()

        async def ours(number: int) -> float:
            name = f"ours-{number}"
            began = await here.create(here.pod(name, {"data": "data"}))
            whole.append(await here.started(name) - began)
            seconds = await here.rpc("NodePublishVolume", volume)
            ends.append(await _end(here, name, volume))
            return seconds

        async def floor(number: int) -> float:
            began = await here.create(here.pod(f"plain-{number}"))
            plain.append(await here.started(f"plain-{number}") - began)
            await here.delete(f"plain-{number}")
            began = await here.create(_client(here, f"client-{number}"))
            seconds = await here.started(f"client-{number}", word=_MOUNTED) - began
            await here.delete(f"client-{number}")
            await here.gone(f"client-{number}")
            return seconds

        mine, least = await alternate(_STARTS, ours, floor, tell=tell)
    return [
        latency("k8s-cold", mine, least, what="publish, a mount pod is made", times=1.2),
        latency("k8s-pod", whole[1:], plain[1:], what="pod created → its container runs, a mount pod is made"),
        Row(name="k8s-last", what="last pod deleted → mount pod gone", unit="s", samples=ends[1:]),
    ]


async def _end(here: Place, name: str, volume: str) -> float:
    """Seconds from the request to delete the last pod until the mount pod is gone."""
    began = time.perf_counter()
    await here.delete(name)
    await here.unused(volume)
    return time.perf_counter() - began


def _client(here: Place, name: str) -> Object:
    """By hand: the same image, the same file system, straight to the same node as a mount pod goes."""
    made = here.pod(name, nodeName=here.node)
    container = made["spec"]["containers"][0]
    container |= {
        "image": _IMAGE,
        "command": ["sh", "-c", _CLIENT],
        "securityContext": {"privileged": True},
        "env": [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": "secret", "key": field}}}
            for key, field in _KEYS.items()
        ],
    }
    return made


async def warm(tell: Tell) -> list[Row]:
    """Publish and unpublish of a volume whose mount pod runs, as the node service answers kubelet."""
    bound, unbound = list[float](), list[float]()
    async with place("warm") as here:
        volume = await here.case.claim()
        await here.create(here.pod("kept", {"data": "data"}))
        await here.rpc("NodePublishVolume", volume)

        async def ours(number: int) -> float:
            await here.create(here.pod(f"ours-{number}", {"data": "data"}))
            seconds = await here.rpc("NodePublishVolume", volume)
            await here.started(f"ours-{number}")
            await here.delete(f"ours-{number}")
            unbound.append(await here.rpc("NodeUnpublishVolume", volume))
            return seconds

        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            base = Path(directory)
            (base / "source").mkdir()
            async with bare_server(base) as server:
                bare = BareBind(server=server, base=base, source=str(base / "source"))

                async def floor(number: int) -> float:
                    seconds = await bare.bind(number)
                    bound.append(await bare.unbind(number))
                    return seconds

                mine, least = await alternate(_WARM, ours, floor, tell=tell)
    return [
        latency("k8s-warm", mine, least, what="publish, the mount pod runs", times=6),
        latency("k8s-unpublish", unbound[1:], bound[1:], what="unpublish, the mount pod goes on", times=6),
    ]


async def bursts(tell: Tell) -> list[Row]:
    """20 pods of one new volume, and 10 pods with a new volume each: until the last is ready."""
    async with place("bursts") as here:
        one = await alternate(
            _BURSTS, lambda number: _one(here, number), lambda number: _plain(here, number, _ONE), tell=tell
        )
        each = await alternate(
            _BURSTS, lambda number: _each(here, number), lambda number: _plain(here, number, _EACH), tell=tell
        )
    return [
        Row(
            name="k8s-one",
            what=f"{_ONE} pods of one new volume at once: the last is ready, beside pods without a volume",
            unit="s",
            samples=one[0],
            floors=one[1],
        ),
        Row(
            name="k8s-each",
            what=f"{_EACH} claims and a pod of each at once: the last is ready, beside pods without a volume",
            unit="s",
            samples=each[0],
            floors=each[1],
        ),
    ]


async def _one(here: Place, number: int) -> float:
    await here.case.claim(f"one-{number}")
    return await _deployed(here, f"one-{number}", {"data": f"one-{number}"}, count=_ONE)


async def _plain(here: Place, number: int, count: int) -> float:
    return await _deployed(here, f"plain-{count}-{number}", {}, count=count)


async def _deployed(here: Place, name: str, claims: dict[str, str], *, count: int) -> float:
    """Seconds until all pods of a new Deployment are ready; afterwards they are gone."""
    spec = objects.pod_spec(claims, STARTED)
    deployment = objects.deployment(name, here.case.namespace, spec, replicas=count)
    began = time.perf_counter()
    await here.api.create(DEPLOYMENTS, deployment, namespace=here.case.namespace)
    await here.ready(f"app={name}", count)
    seconds = time.perf_counter() - began
    await here.api.delete(DEPLOYMENTS, name, namespace=here.case.namespace)
    await _no_pods(here, f"app={name}")
    return seconds


async def _each(here: Place, number: int) -> float:
    names = [f"each-{number}-{one}" for one in range(_EACH)]
    made = [
        made
        for name in names
        for made in (
            objects.claim(name, here.case.namespace, storage_class=here.case.namespace),
            here.pod(name, {"data": name}) | {"metadata": objects.metadata(name, labels={"app": f"each-{number}"})},
        )
    ]
    began = time.perf_counter()
    await here.case.cluster.apply(
        *({**one, "metadata": one["metadata"] | {"namespace": here.case.namespace}} for one in made)
    )
    await here.ready(f"app=each-{number}", _EACH)
    seconds = time.perf_counter() - began
    here.case.volumes += [await here.case.bound(name) for name in names]
    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(here.delete(name))
    await _no_pods(here, f"app=each-{number}")
    return seconds


async def _no_pods(here: Place, labels: str) -> None:
    async def none() -> bool:
        return not (await here.api.list(PODS, namespace=here.case.namespace, labels=labels))["items"]

    await until(none, what=f"no pods of {labels}", within=90)
