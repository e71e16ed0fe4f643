"""Closes the mounts that nobody uses: when the node says that one became idle, and by a look every half minute.

The node decides, and for it the kernel: whatever is believed here, a mount in use is not unmounted.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from services.mountpod.node import NodeService, is_used
from services.mountpod.runtime import Runtime
from shared.api.juicefs.v1 import Event, MountReport
from shared.errors import DriverError

_PERIOD: Final = 30.0
_AGAIN: Final = 1.0
"""Seconds until the next look when the node service could not be asked."""
_GRACE: Final = 3.0
"""Seconds that an unused mount is left to the publish that may be about to come again (promise 6: 10 in all)."""

_log = structlog.get_logger()


class Reconcile:
    """Waits for each idle mount as long as its volume asks (`juicefs/mount-delete-delay`), then closes it."""

    def __init__(self, *, runtime: Runtime, node: NodeService) -> None:
        self._runtime = runtime
        self._node = node
        self._tasks: asyncio.TaskGroup | None = None
        self._idle: dict[str, asyncio.Task[None]] = {}
        self._due = asyncio.Event()

    def hear(self, event: Event) -> None:
        """What the node says of targets that come and go."""
        if event.target_bound is not None:
            self._keep(event.mount)
        elif event.mount_idle is not None:
            self._keep(event.mount)
            self._close_after(event.mount, seconds=0.0)
        elif event.service_started is not None:  # the node's, which may have left something half done
            self._runtime.retry()
            self._due.set()
        elif event.client_lost is not None:
            self._due.set()

    async def run(self) -> None:
        """Look every half minute at what no event told, and when the node service has started; until cancelled."""
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    self._due.clear()
                    period = _PERIOD if await self.look() else _AGAIN
                    with suppress(TimeoutError):
                        async with asyncio.timeout(period):
                            await self._due.wait()
        finally:
            self._tasks = None

    async def look(self) -> bool:
        """The same decisions as by events, from the node's report; False if there is none."""
        try:
            mounts = await self._node.report()
        except DriverError as error:
            _log.debug("look put off", cause=str(error))
            return False
        try:
            self._runtime.look(mounts)
        except OSError as error:
            _log.warning("not tidied", cause=error.strerror, file=error.filename)
        for name in {*mounts, *self._runtime.clients()}:
            if is_used(mounts.get(name)):
                self._keep(name)
            elif name not in self._idle and not self._is_starting(mounts.get(name), name):
                self._close_after(name, seconds=_GRACE)
        return True

    def _is_starting(self, mount: MountReport | None, name: str) -> bool:
        """A client whose mount is not there yet is closed once it is, or ends by itself."""
        return name in self._runtime.clients() and not (mount and mount.device)

    def _keep(self, name: str) -> None:
        if (closing := self._idle.pop(name, None)) is not None:
            closing.cancel()
            self._runtime.announce_end(name, None)

    def _close_after(self, name: str, *, seconds: float) -> None:
        if self._tasks is None:
            return
        settings = self._runtime.clients().get(name)
        delay = max(seconds, settings.delete_delay if settings else 0.0)
        if settings is not None and settings.delete_delay:
            self._runtime.announce_end(name, delay)
        self._idle[name] = self._tasks.create_task(self._close(name, delay), name=f"close {name}")

    async def _close(self, name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        del self._idle[name]  # from here on nothing cancels it
        try:
            if await self._node.close(name):
                await self._runtime.end(name)
        except (DriverError, OSError) as error:
            _log.warning("mount not closed yet", mount=name, error=str(error))
