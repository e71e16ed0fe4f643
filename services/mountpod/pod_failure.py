"""Why a mount pod did not come up: Kubernetes' words for what it could not start, else the client's own."""

from dataclasses import dataclass
from typing import Final

from services.mountpod.pod_maker import PodMaker
from services.mountpod.pod_state import POD_STARTING, State, Verdict, restarts
from shared.diagnosis import UNKNOWN, diagnose, masked
from shared.domain import Secret
from shared.errors import CommandFailed
from shared.manifests import CONTAINER
from shared.objects import Pod

_HOPELESS: Final = ("META_", "BUCKET_")
_OVER: Final = (State.EXITED, State.CRASHED, State.ENDED)
"""None of these is waited for: it never came up."""


def stuck(pod: Pod, found: Verdict) -> CommandFailed:
    """Kubernetes can't start it as things are."""
    return CommandFailed(f"{found.reason}: mount pod {pod.metadata.name}: {found.message}", reason=found.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """The texts of `marks` are masked in what is said."""

    maker: PodMaker
    marks: tuple[Secret, ...]

    async def why(self, pod: Pod, found: Verdict, *, doubt: bool | None, wonders: bool = False) -> CommandFailed | None:
        """Why a client does not come up; None while it may.

        With `doubt` it runs for so long that its complaints count, though it goes on trying; True: its silence, too.
        With `wonders` Kubernetes is asked what it complains of.
        """
        if found.state is State.STUCK:
            return stuck(pod, found)
        if found.state in _OVER or (restarts(pod) and found.state is not State.LEAVING):
            return await self._last_words(pod, found)
        if found.state is State.RUNNING and doubt is not None:
            return await self._complaint(pod, is_late=doubt)
        if found.state is State.STARTING and wonders and (words := await self.maker.warning(pod)):
            message = f"{POD_STARTING}: mount pod {pod.metadata.name}: {masked(words, self.marks)}"
            return CommandFailed(message, reason=POD_STARTING)
        return None

    async def _complaint(self, pod: Pod, *, is_late: bool) -> CommandFailed | None:
        text = await self.maker.log(pod, container=CONTAINER, previous=False)
        lines = text.splitlines() if is_late else [line for line in text.splitlines() if "<INFO>" not in line]
        words = diagnose("\n".join(lines), marks=self.marks)
        if words is None or not words.reason.startswith(_HOPELESS):
            return None
        return CommandFailed(f"{words.reason}: {words.line}", reason=words.reason)

    async def _last_words(self, pod: Pod, found: Verdict) -> CommandFailed:
        for previous in (False, True):
            text = await self.maker.log(pod, container=CONTAINER, previous=previous)
            words = diagnose(text, marks=self.marks)
            # A client that runs again by now has said little: the run before it tells why.
            if words and (words.reason != UNKNOWN or found.state is not State.RUNNING):
                return CommandFailed(f"{words.reason}: {words.line}", reason=words.reason)
        reason = found.reason or UNKNOWN
        told = masked(found.message, self.marks) or "it ended"
        message = f"{reason}: mount pod {pod.metadata.name}: {told}"
        return CommandFailed(message, reason=reason)
