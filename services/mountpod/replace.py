"""Replaces a client that serves by another pod, without a failed call: for an upgrade, or because somebody asks.

1. the successor is created; it waits for the lock of the pod before it, so its image is there and nothing is lost yet
2. the old pod is deleted: its preStop says that it leaves
3. the node takes the client's descriptor and notes its session, and preStop has the client save what is open and end
4. the successor has the lock, takes the descriptor over, loads what was open, and hands the descriptor in
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from services.mountpod.pod_state import State, verdict
from shared.errors import Busy, DriverError, InUse, NotFound, NotReady
from shared.manifests import MOUNT, pod_name
from shared.objects import Pod

if TYPE_CHECKING:
    from services.mountpod.mount import Mount

_START_TIMEOUT: Final = 120.0
_TAKE_TIMEOUT: Final = 30.0
_LEAVE_TIMEOUT: Final = 7.0
_STEP: Final = 0.1


class _Short(NotReady):
    """The node is short of what the pod requests; the next one requests nothing."""


async def replace_in_order(mount: "Mount") -> None:
    """The client of this mount is another pod's when this returns.

    Raises:
        Busy: it is starting, or being replaced. InUse: it is no pod of ours.
        NotReady: the successor did not come in time; which one serves is said.
    """
    old, maker = _serving(mount), mount.place.cluster.maker
    if MOUNT not in old.metadata.annotations:
        raise InUse(f"{mount.name} was made by another driver, and can't hand over: it ends with its users")
    try:
        new = await _started(mount, old)
    except _Short:  # the node has no room for what two of them ask for
        new = await _started(mount, old)
    mount.handed_in.clear()
    await maker.delete(old)
    await let_go(mount)
    try:
        async with asyncio.timeout(_TAKE_TIMEOUT):
            await mount.handed_in.wait()
    except TimeoutError:
        raise NotReady(f"{mount.name}: pod {new.metadata.name} has not taken over yet: see its log") from None


async def _started(mount: "Mount", old: Pod) -> Pod:
    """A successor that waits for the lock; none is left when it does not come that far."""
    new = await mount.create_successor(old)
    try:
        await _running(mount, new)
    except DriverError:
        await mount.place.cluster.maker.delete(new, grace=0)
        raise
    return new


def _serving(mount: "Mount") -> Pod:
    """The pod that serves; a successor that waits since mountpod was cut off is no obstacle: it is found again."""
    if not (present := mount.pods()):
        raise NotFound(f"the client of {mount.name} has ended")
    names = {pod_name(mount.place.node, mount.name, after=pod.metadata.uid): pod for pod in present}
    old = next((names[pod.metadata.name] for pod in present if pod.metadata.name in names), present[0])
    others = {pod.metadata.name for pod in present if pod is not old}
    is_serving = verdict(old).state is State.RUNNING
    if not is_serving or others - {pod_name(mount.place.node, mount.name, after=old.metadata.uid)}:
        raise Busy(f"{mount.name} is starting, or being replaced")
    return old


async def let_go(mount: "Mount") -> None:
    """Have the node take the descriptor of a client that leaves, as soon as its preStop says so."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LEAVE_TIMEOUT):
            while True:
                with suppress(NotReady):
                    await mount.place.service.release(mount.name)
                    return
                await asyncio.sleep(_STEP)


async def _running(mount: "Mount", new: Pod) -> None:
    """Wait until the successor waits for the lock."""
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while True:
                found = next((verdict(pod) for pod in mount.pods() if pod.metadata.uid == new.metadata.uid), None)
                if found is not None and found.state is State.RUNNING:
                    return
                if found is not None and found.state is State.SHORT and mount.asks_less():
                    raise _Short(found.message)
                if found is None or found.state is not State.STARTING:
                    words = found.message if found else "it was deleted"
                    raise NotReady(f"pod {new.metadata.name} does not start: {words}; the client before it goes on")
                await asyncio.sleep(_STEP)
    except TimeoutError:
        raise NotReady(f"pod {new.metadata.name} does not start; the client before it goes on") from None
