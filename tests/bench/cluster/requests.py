"""What the driver asks of the API server, counted by the API server itself.

Each kind of request of the driver's service accounts gets a FlowSchema (API Priority and Fairness) while it is counted:
the API server's own metrics then say how many requests came by each. They go to the level that serves them otherwise.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from shared.errors import AlreadyExists, NotFound, NotReady
from shared.kubernetes import Kind, Kubernetes
from tests.bench.cluster.place import Place, place, until
from tests.bench.rows import Row, Tell
from tests.e2e.cluster import SYSTEM, kubectl

_FLOWS: Final = Kind(path="/apis/flowcontrol.apiserver.k8s.io/v1", plural="flowschemas")
_PREFIX: Final = "bench-juicefs-"
_ACCOUNTS: Final = (
    "juicefs-csi-controller-sa",
    "juicefs-csi-mountpod-sa",
    "juicefs-csi-node-sa",
    "juicefs-csi-mount-sa",
)
_KINDS: Final[dict[str, tuple[list[str], list[str]]]] = {
    "leases": (["*"], ["leases"]),
    "events": (["*"], ["events"]),
    "watches": (["watch"], ["*"]),
    "lists": (["list"], ["*"]),
    "reads": (["get"], ["*"]),
    "writes": (["*"], ["*"]),  # whatever is left
}
"""Verbs and resources, the first that fits counts."""
_FIRST: Final = 50  # precedence: before the API server's own for leader elections
_DISPATCHED: Final = re.compile(
    r'^apiserver_flowcontrol_dispatched_requests_total\{flow_schema="' + _PREFIX + r'(\w+)".*\} (\S+)$', re.MULTILINE
)
_QUIET: Final = 60.0  # seconds of rest that are counted
_SETTLE: Final = 3.0
"""Seconds after which the driver has said what it has to say of a publish."""
_SAMPLES: Final = 5


async def requests(tell: Tell) -> list[Row]:
    """API requests of the driver for a claim, for cold and warm publishes, for their ends, and at rest."""
    found: dict[str, list[Counter[str]]] = {}
    async with place("requests") as here, _counted(here.api):
        rest = await _during(asyncio.sleep(_QUIET))
        for number in range(_SAMPLES):
            tell(f"{number}/{_SAMPLES}")
            for what, counted in (await _life(here, f"data-{number}")).items():
                found.setdefault(what, []).append(counted)
    minute = 60 / _QUIET
    return [
        *(row for what, counts in found.items() for row in _rows(what, counts)),
        Row(
            name="k8s-rest",
            what=f"requests at rest but watches and leases: {_details(rest)}",
            unit="/min",
            samples=[(rest.total() - rest["leases"] - rest["watches"]) * minute],
            most=0,
        ),
        Row(name="k8s-rest-leases", what="requests for two leases", unit="/min", samples=[rest["leases"] * minute]),
        Row(name="k8s-rest-watches", what="watches begun at rest", unit="/min", samples=[rest["watches"] * minute]),
    ]


def _rows(what: str, counts: list[Counter[str]]) -> list[Row]:
    """Writes and lists beside the bars that are there for them, and all that is asked."""
    most = {"cold": 3.0, "warm": 1.0}.get(what)
    details = _details(counts[-1])
    lists = [float(counted["lists"]) for counted in counts]
    writes = [float(counted["writes"]) for counted in counts]
    rows = [
        Row(
            name=f"k8s-{what}-writes",
            what=f"API requests of {_WORDS[what]}: {details}",
            unit="",
            samples=writes,
            most=most,
        )
    ]
    if what in {"cold", "warm"}:
        rows.append(Row(name=f"k8s-{what}-lists", what=f"LISTs of {_WORDS[what]}", unit="", samples=lists, most=0))
    return rows


def _details(counted: Counter[str]) -> str:
    """Without what has a clock of its own."""
    kinds = [kind for kind in _KINDS if kind not in {"leases", "watches"}]
    return ", ".join(f"{counted[kind]} {kind}" for kind in kinds if counted[kind]) or "none"


_WORDS: Final = {
    "claim": "a claim that gets its volume",
    "cold": "a publish that makes a mount pod",
    "warm": "a publish while the mount pod runs",
    "end": "the last unpublish, until the mount pod is gone",
    "deleted": "a claim that is deleted, until its volume is gone",
}


async def _life(here: Place, name: str) -> dict[str, Counter[str]]:
    """A volume from its claim to its end."""
    found = {"claim": await _during(here.case.claim(name))}
    volume = here.case.volumes[-1]

    async def cold() -> None:
        await here.create(here.pod(name, {"data": name}))
        await here.rpc("NodePublishVolume", volume)

    async def end() -> None:
        await here.delete(f"{name}-more")
        await here.gone(f"{name}-more")
        await here.delete(name)
        await here.unused(volume)

    async def deleted() -> None:
        await kubectl("delete", "pvc", name, "--namespace", here.case.namespace)
        await until(lambda: _is_gone(here, volume), what=f"volume {volume} gone")

    found["cold"] = await _during(cold())
    found["warm"] = await _during(_warm(here, name, volume))
    found["end"] = await _during(end())
    found["deleted"] = await _during(deleted())
    return found


async def _warm(here: Place, name: str, volume: str) -> None:
    """One more pod of the volume."""
    await here.create(here.pod(f"{name}-more", {"data": name}))
    await here.rpc("NodePublishVolume", volume)


async def _is_gone(here: Place, volume: str) -> bool:
    return all(one["spec"]["csi"]["volumeHandle"] != volume for one in await here.volumes())


async def _during(work: Any) -> Counter[str]:
    """The requests while this is done, and shortly after."""
    before = await _counts()
    await work
    await asyncio.sleep(_SETTLE)
    counted = await _counts()
    counted.subtract(before)
    return counted


async def _counts() -> Counter[str]:
    text = await kubectl("get", "--raw", "/metrics")
    return Counter({kind: int(float(count)) for kind, count in _DISPATCHED.findall(text)})


@asynccontextmanager
async def _counted(api: Kubernetes) -> AsyncIterator[None]:
    """While inside, the API server counts the driver's requests by kind."""
    try:
        for number, (kind, (verbs, resources)) in enumerate(_KINDS.items()):
            with suppress(AlreadyExists):  # of a run that was killed
                await api.create(_FLOWS, _flow(kind, verbs, resources, precedence=_FIRST + number))
        # Who holds or wants a Lease asks every two seconds.
        await until(_leases_seen, what="the API server counts the driver's requests", within=90)
        yield
    finally:
        for kind in _KINDS:
            await until(partial(_gone, api, f"{_PREFIX}{kind}"), what="the bench's FlowSchemas deleted", step=1)


async def _gone(api: Kubernetes, name: str) -> bool:
    """Also when the API server is away for a while."""
    try:
        await api.delete(_FLOWS, name)
    except NotReady:
        return False
    except NotFound:
        pass
    return True


async def _leases_seen() -> bool:
    return (await _counts())["leases"] > 0


def _flow(kind: str, verbs: list[str], resources: list[str], *, precedence: int) -> dict[str, Any]:
    accounts = [
        {"kind": "ServiceAccount", "serviceAccount": {"namespace": SYSTEM, "name": account}} for account in _ACCOUNTS
    ]
    rule = {"verbs": verbs, "apiGroups": ["*"], "resources": resources, "clusterScope": True, "namespaces": ["*"]}
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": f"{_PREFIX}{kind}"},
        "spec": {
            "matchingPrecedence": precedence,
            "priorityLevelConfiguration": {"name": "workload-high"},
            "distinguisherMethod": {"type": "ByNamespace"},
            "rules": [{"subjects": accounts, "resourceRules": [rule]}],
        },
    }
