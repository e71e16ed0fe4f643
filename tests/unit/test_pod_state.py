"""What a pod's status says, from statuses as Kubernetes writes them; and what is told of one that does not come up."""

import asyncio
from typing import Any

import msgspec
import pytest

from services.mountpod.alarms import Alarms
from services.mountpod.failures import Failures, back_off
from services.mountpod.pod_failure import Failing
from services.mountpod.pod_index import _key, settings_of
from services.mountpod.pod_maker import PodMaker
from services.mountpod.pod_state import State, restarts, verdict
from shared.domain import Secret
from shared.errors import CommandFailed, NotReady
from shared.objects import Pod


def pod(status: dict[str, Any] | None = None, *, command: str = "", **metadata: Any) -> Pod:
    whole = {
        "metadata": {"name": "juicefs-n1-pvc-1-abcdef", "uid": "u", **metadata},
        "spec": {"nodeName": "n1", "containers": [{"name": "jfs-mount", "command": ["sh", "-c", command]}]},
        "status": status or {},
    }
    return msgspec.convert(whole, Pod)


def client(phase: str = "Running", restarts: int = 0, **state: Any) -> dict[str, Any]:
    return {
        "phase": phase,
        "containerStatuses": [
            {"name": "sidecar", "restartCount": 9, "state": {"running": {}}},
            {"name": "jfs-mount", "restartCount": restarts, "state": state},
        ],
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return client(phase="Pending", waiting={"reason": reason, "message": message})


def failed(reason: str, message: str) -> dict[str, Any]:
    return {"phase": "Failed", "reason": reason, "message": message}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


STATUSES: list[tuple[dict[str, Any], State, str, str]] = [
    ({}, State.STARTING, "", ""),
    ({"phase": "Pending"}, State.STARTING, "", ""),
    (waiting("ContainerCreating"), State.STARTING, "", ""),
    (waiting("PodInitializing"), State.STARTING, "", ""),
    (client(running={"startedAt": "2026-01-01T00:00:00Z"}), State.RUNNING, "", ""),
    (waiting("ErrImagePull", "manifest unknown"), State.STUCK, "IMAGE_PULL", "ErrImagePull: manifest unknown"),
    (waiting("ImagePullBackOff", "Back-off"), State.STUCK, "IMAGE_PULL", "ImagePullBackOff: Back-off"),
    (waiting("InvalidImageName"), State.STUCK, "IMAGE_PULL", "InvalidImageName"),
    (waiting("CreateContainerConfigError", "no key"), State.STUCK, "POD_CONFIG", "no key"),
    (waiting("RunContainerError", "no such file"), State.STUCK, "POD_CONFIG", "no such file"),
    (unscheduled("0/1 nodes are available: 1 Insufficient cpu."), State.SHORT, "UNSCHEDULABLE", "Insufficient cpu"),
    (unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint."), State.STUCK, "UNSCHEDULABLE", "taint"),
    (failed("OutOfmemory", "Node didn't"), State.SHORT, "UNSCHEDULABLE", "Node didn't"),
    (failed("OutOfcpu", "x"), State.SHORT, "UNSCHEDULABLE", "OutOfcpu: x"),
    (failed("UnexpectedAdmissionError", "attempting to reclaim resources"), State.SHORT, "UNSCHEDULABLE", "reclaim"),
    (failed("UnexpectedAdmissionError", "no healthy devices"), State.ENDED, "POD_FAILED", "devices"),
    (failed("Evicted", "low on memory"), State.ENDED, "POD_FAILED", "Evicted: low on"),
    ({"phase": "Failed"}, State.ENDED, "POD_FAILED", "no container has run"),
    (client(phase="Failed", terminated={"exitCode": 3}), State.ENDED, "POD_FAILED", "exit code 3"),
    (client(phase="Succeeded", terminated={"exitCode": 0}), State.ENDED, "", ""),
    (client(terminated={"exitCode": 1, "reason": "Error"}), State.EXITED, "POD_FAILED", "exit code 1 (Error)"),
    (client(terminated={"exitCode": 137, "reason": "OOMKilled"}), State.EXITED, "OUT_OF_MEMORY", "137"),
    (waiting("CrashLoopBackOff", "back-off 10s"), State.CRASHED, "POD_FAILED", "10s"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "state", "reason_and_words"), [(one, two, rest) for one, two, *rest in STATUSES])
def test_a_status_is_one_word_and_why(status: dict[str, Any], state: State, reason_and_words: list[str]) -> None:
    """behaviour.md 4.8, and what kubelet and scheduler write."""
    found = verdict(pod(status))
    assert (found.state, found.reason) == (state, reason_and_words[0])
    assert reason_and_words[1] in found.message
    assert not found.message.startswith(": ")


def test_an_init_container_that_cant_start_is_why() -> None:
    """It comes before the client."""
    status = waiting("PodInitializing") | {
        "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}]
    }
    assert verdict(pod(status)).state is State.STUCK


@pytest.mark.parametrize("status", [{}, client(running={}), {"phase": "Failed"}])
def test_what_is_being_deleted_leaves(status: dict[str, Any]) -> None:
    """Whatever else it says."""
    assert verdict(pod(status, deletionTimestamp="2026-01-01T00:00:00Z")).state is State.LEAVING


def test_only_the_clients_restarts_count() -> None:
    """An operator's sidecar has its own."""
    assert (restarts(pod(client(restarts=3, running={}))), restarts(pod())) == (3, 0)


def test_what_lives_may_serve() -> None:
    """Only these are waited for, or taken for the client of a mount."""
    lives = {
        state
        for _, state, _, _ in STATUSES
        if any(verdict(pod(one)).lives for one, two, *_ in STATUSES if two is state)
    }
    assert lives == {State.STARTING, State.RUNNING, State.STUCK}


class Logs(PodMaker):
    """What the API server has of a container's logs: this run's, and the one's before."""

    def __init__(self, now: str = "", before: str = "") -> None:
        self._texts = (now, before)

    async def log(self, pod: Pod, *, container: str, previous: bool, lines: int = 20) -> str:
        return self._texts[previous]


async def why(logs: Logs, status: dict[str, Any], *, doubt: bool | None = None) -> CommandFailed | None:
    failing = Failing(maker=logs, marks=(Secret("s3cr3t"),))
    return await failing.why(pod(status), verdict(pod(status)), doubt=doubt)


async def test_the_clients_words_come_first() -> None:
    """Its class, its line, and no secret (promises 10, 22)."""
    logs = Logs(
        "2026/01/01 00:00:00.0 juicefs[1] <FATAL>: Meta s3cr3t is not available: connection refused [main@mount.go:1]"
    )
    found = await why(logs, client(terminated={"exitCode": 1}))
    assert (found and found.reason, str(found)) == (
        "META_UNREACHABLE", "META_UNREACHABLE: Meta *** is not available: connection refused",
    )  # fmt: skip


async def test_the_run_before_tells_why_a_client_was_restarted() -> None:
    """One that runs again has said little."""
    found = await why(Logs("starting", "database is not formatted"), client(restarts=1, running={}))
    assert found
    assert found.reason == "META_NOT_FORMATTED"


async def test_without_a_word_kubernetes_words_count() -> None:
    """There is always something to look at."""
    found = await why(Logs(), client(terminated={"exitCode": 137, "reason": "OOMKilled"}))
    assert str(found) == "OUT_OF_MEMORY: mount pod juicefs-n1-pvc-1-abcdef: exit code 137 (OOMKilled)"


@pytest.mark.parametrize("status", [client(running={}), waiting("ContainerCreating"), {}])
async def test_what_may_come_up_has_not_failed(status: dict[str, Any]) -> None:
    """Patience."""
    assert await why(Logs("Meta address: redis://x"), status) is None


@pytest.mark.parametrize(
    ("line", "doubt", "is_hopeless"),
    [
        ("dial tcp: connection refused", False, True),
        ("<INFO>: Meta address: redis://x", False, False),
        ("ready", True, False),
    ],
)
async def test_a_client_that_tries_for_ever(line: str, *, doubt: bool, is_hopeless: bool) -> None:
    """After a while what it complains of ends the publish (promise 10)."""
    assert bool(await why(Logs(line), client(running={}), doubt=doubt)) == is_hopeless


@pytest.mark.looptime
async def test_each_failure_doubles_the_pause() -> None:
    """Promise 10: 1, 2, 4 … 30 s, and from the beginning after a success."""
    failures, error = Failures(), NotReady("away")
    pauses = []
    for _ in range(7):
        pauses.append(failures.add("m", error))
        with pytest.raises(NotReady, match="away"):
            failures.check("m")
        await asyncio.sleep(pauses[-1])
        failures.check("m")
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    failures.forget("m")
    assert failures.add("m", error) == back_off(1)
    failures.check("other")


@pytest.mark.looptime
async def test_failures_are_forgotten() -> None:
    """Nothing grows with time: what nobody asked for again goes."""
    failures = Failures()
    failures.add("m", NotReady("away"))
    await asyncio.sleep(119)
    failures.tidy()
    assert failures._failures
    await asyncio.sleep(3)
    failures.tidy()
    assert not failures._failures


@pytest.mark.looptime
async def test_an_alarm_rings_once() -> None:
    """However often it is set, and again afterwards."""
    rung: list[str] = []
    alarms = Alarms(rung.append)
    for _ in range(3):
        alarms.set("a", 2.0)
    alarms.set("b", 1.0)
    await asyncio.sleep(3)
    assert rung == ["b", "a"]
    alarms.set("a", 2.0)
    await asyncio.sleep(3)
    assert rung == ["b", "a", "a"]


@pytest.mark.parametrize(
    ("name", "command", "mount"),
    [
        ("juicefs-n1-pvc-1-abcdef", "", "pvc-1-abcdef"),
        ("juicefs-n1-pvc-1-x", "format x\nexec /bin/mount.juicefs ${metaurl} /jfs/pvc-1-abcdef -o a", "pvc-1-abcdef"),
        ("juicefs-n1-pvc-1-x", "format x\n/bin/mount.juicefs ${metaurl} /jfs/pvc-1-abcdef -o a\n", "pvc-1-abcdef"),
        ("juicefs-n1-pvc-1-ghijkl", "format x", "pvc-1-ghijkl"),
        ("juicefs-n1-pvc-1-x", "exec a b /jfs/../../etc", None),
        ("other", "", None),
    ],
)
def test_which_mount_a_pod_of_the_driver_before_serves(name: str, command: str, mount: str | None) -> None:
    """behaviour.md 4.2: what it mounts says it, or else its name."""
    assert _key(pod(name=name, command=command)) == (("n1", mount) if mount else None)


def test_which_mount_a_pod_of_ours_serves() -> None:
    """It says so itself: a successor has another name."""
    annotations = {"juicefs.com/mount": "pvc-1-abcdef"}
    assert _key(pod(name="juicefs-n1-pvc-1-ghijkl", annotations=annotations)) == ("n1", "pvc-1-abcdef")


def test_what_is_known_of_a_client_that_another_planned() -> None:
    """Whose it is, and how long it stays without users; what can't be read counts as nothing."""
    found = settings_of("pvc-1-abcdef", [pod(annotations={"juicefs-delete-delay": "1h0m0s"})])
    assert (found.volume_id, found.delete_delay) == ("pvc-1", 3600)
    assert settings_of("pvc-1-abcdef", [pod(annotations={"juicefs-delete-delay": "soon"})]).delete_delay == 0
