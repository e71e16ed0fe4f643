"""What a mount pod's status says, in one word, and why (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/)."""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from shared.manifests import CLIENT, CONTAINER
from shared.objects import ContainerState, Pod, PodStatus
from shared.settings import ClientSettings

IMAGE_PULL: Final = "IMAGE_PULL"
UNSCHEDULABLE: Final = "UNSCHEDULABLE"
POD_CONFIG: Final = "POD_CONFIG"
POD_STARTING: Final = "POD_STARTING"
POD_FAILED: Final = "POD_FAILED"
OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"
_IMAGE: Final = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}


class State(Enum):
    """What may become of it.

    `STUCK` may still come up, when somebody changes something. Kubelet starts `EXITED` again, at once the first time;
    `CRASHED` only after a while, and `ENDED` not at all.
    """

    STARTING = auto()
    RUNNING = auto()
    STUCK = auto()
    SHORT = auto()
    EXITED = auto()
    CRASHED = auto()
    ENDED = auto()
    LEAVING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reason` is a class for machines, `message` Kubernetes' own words; both empty while all is well."""

    state: State
    reason: str = ""
    message: str = ""

    @property
    def lives(self) -> bool:
        """It serves, or may come to that."""
        return self.state in {State.STARTING, State.RUNNING, State.STUCK}


def verdict(pod: Pod) -> Verdict:
    """How the pod is."""
    status = pod.status
    if pod.metadata.deletion_timestamp:
        return Verdict(state=State.LEAVING)
    if status.phase == "Failed":
        is_short = _is_short(status)
        words = _joined(status.reason, status.message or _last_words(_container(pod)))
        return Verdict(
            state=State.SHORT if is_short else State.ENDED,
            reason=UNSCHEDULABLE if is_short else POD_FAILED,
            message=words,
        )
    if status.phase == "Succeeded":
        return Verdict(state=State.ENDED)
    for condition in status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            is_short = "Insufficient" in condition.message
            return Verdict(
                state=State.SHORT if is_short else State.STUCK, reason=UNSCHEDULABLE, message=condition.message
            )
    return _of_container(_container(pod))


def restarts(pod: Pod) -> int:
    """How often kubelet started its client again."""
    return next((one.restart_count for one in pod.status.container_statuses if one.name == CONTAINER), 0)


def _is_short(status: PodStatus) -> bool:
    """behaviour.md 4.8: kubelet had no room for what is requested, and could make none."""
    is_unexpected = status.reason == "UnexpectedAdmissionError"
    return "OutOf" in status.reason or (is_unexpected and "reclaim" in status.message)


def serves(pod: Pod, settings: ClientSettings) -> bool:
    """True if its client has these settings; one that was made again has those of then. How it looks is no matter."""
    return pod.metadata.annotations.get(CLIENT) == replace(settings, pod="").digest


def exit_code(pod: Pod) -> int:
    """Of its client; -1 if that is not known."""
    ended = next((one.state.terminated for one in pod.status.container_statuses if one.name == CONTAINER), None)
    return ended.exit_code if ended else -1


def _container(pod: Pod) -> ContainerState:
    """The first init container that is not well, or else the client's."""
    for one in pod.status.init_container_statuses:
        if one.state.waiting and one.state.waiting.reason not in {"", "PodInitializing"}:
            return one.state
    return next((one.state for one in pod.status.container_statuses if one.name == CONTAINER), ContainerState())


def _of_container(state: ContainerState) -> Verdict:
    if state.running:
        return Verdict(state=State.RUNNING)
    if state.terminated:
        reason = OUT_OF_MEMORY if state.terminated.reason == "OOMKilled" else POD_FAILED
        return Verdict(state=State.EXITED, reason=reason, message=_last_words(state))
    waiting = state.waiting.reason if state.waiting else ""
    message = _joined(waiting, state.waiting.message) if state.waiting else ""
    if waiting in _IMAGE:
        return Verdict(state=State.STUCK, reason=IMAGE_PULL, message=message)
    if waiting in _CONFIG:
        return Verdict(state=State.STUCK, reason=POD_CONFIG, message=message)
    if waiting == "CrashLoopBackOff":
        return Verdict(state=State.CRASHED, reason=POD_FAILED, message=message)
    return Verdict(state=State.STARTING)


def _joined(*words: str) -> str:
    return ": ".join(filter(None, words))


def _last_words(state: ContainerState) -> str:
    ended = state.terminated
    if ended is None:
        return "no container has run"
    return ended.message or f"exit code {ended.exit_code} ({ended.reason})"
