"""Why a mount pod did not come up: Kubernetes' words for what it could not start, else the client's own."""

from collections.abc import Iterable

from services.mountpod.pod_maker import PodMaker
from services.mountpod.pod_state import State, Verdict
from shared.diagnosis import UNKNOWN, diagnose
from shared.domain import Secret
from shared.errors import CommandFailed
from shared.manifests import CONTAINER
from shared.objects import Pod


def stuck(pod: Pod, found: Verdict) -> CommandFailed:
    """Kubernetes can't start it as things are."""
    return CommandFailed(f"{found.reason}: mount pod {pod.metadata.name}: {found.message}", reason=found.reason)


async def failure(pod: Pod, found: Verdict, *, maker: PodMaker, marks: Iterable[Secret]) -> CommandFailed:
    """What to tell who waits for it; the texts of `marks` are masked."""
    if found.state is State.STUCK:
        return stuck(pod, found)
    secrets = tuple(marks)
    for previous in (False, True):
        text = await maker.log(pod, container=CONTAINER, previous=previous)
        words = diagnose(text, marks=secrets)
        # A client that runs again by now has said little: the run before it tells why.
        if words and (words.reason != UNKNOWN or found.state is not State.RUNNING):
            return CommandFailed(f"{words.reason}: {words.line}", reason=words.reason)
    reason = found.reason or UNKNOWN
    return CommandFailed(f"{reason}: mount pod {pod.metadata.name}: {found.message or 'it ended'}", reason=reason)
