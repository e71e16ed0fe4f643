"""Finds the client that serves a publication: the one that runs here, or a new one asked of mountpod."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import orjson

from services.node.answers import Answers
from services.node.mounts import Mounts
from services.node.probe import Probes, Unmounted
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, Event, MountFailed, Workload
from shared.bus import Bus
from shared.domain import digest
from shared.errors import CommandFailed, NotReady
from shared.filesystem import credentials_digest
from shared.layout import Layout
from shared.mounttable import MountEntry, MountTable
from shared.private_file import write_private
from shared.settings import shared_context

ASK_TIMEOUT: Final = 10.0
ASK_AGAIN: Final = 1.0
"""Seconds until mountpod is asked again for a client whose mount does not appear: it may have been restarted."""
_REMEMBERED: Final = 60.0
"""Seconds that a failure is kept for who waits; a publish waits for less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a publication needs a client for. Equal inputs get the same client."""

    volume_id: str
    context: Mapping[str, str]
    mount_options: tuple[str, ...]
    secrets: Mapping[str, str]
    target: str = ""

    @property
    def workload(self) -> Workload:
        """The pod that wants it, as kubelet tells (podInfoOnMount)."""
        pod = {key: self.context.get(f"csi.storage.k8s.io/pod.{key}", "") for key in ("namespace", "name", "uid")}
        return Workload(**pod)

    @property
    def inputs(self) -> str:
        """Digest of everything that mountpod decides by."""
        return digest([self.volume_id, shared_context(self.context), self.mount_options, self.credentials])

    @property
    def credentials(self) -> str:
        """Digest of the secrets."""
        return credentials_digest(self.secrets)


class Clients:
    """Remembers which client answered which inputs; asks mountpod for the others, and waits for their mounts."""

    def __init__(  # noqa: PLR0913 - the parts of one program
        self,
        *,
        layout: Layout,
        table: MountTable,
        mounts: Mounts,
        probes: Probes,
        bus: Bus,
        node: str,
        leaves_credentials: bool = True,
    ) -> None:
        """With `leaves_credentials`, mountpod is on this machine and takes the secrets of a publish from here."""
        self._leaves_credentials = leaves_credentials
        self._layout = layout
        self._table = table
        self._mounts = mounts
        self._probes = probes
        self._bus = bus
        self._subject = f"juicefs.rpc.mountpod.{node}.Ensure"
        self._answers = Answers(layout)
        self._known: dict[str, str] = {}
        self._connection = bus.connections
        self._failed: dict[str, tuple[float, MountFailed]] = {}
        self._changes = 0

    def hear(self, event: Event) -> None:
        """Events of mountpod: a client that failed wakes who waits for it, a superseded one is asked for again.

        A mountpod that has just started knows nothing of what was asked before; nor does one that closes the mount.
        """
        if event.mount_failed is not None:
            now = time.monotonic()
            self._failed = {name: one for name, one in self._failed.items() if one[0] > now - _REMEMBERED}
            self._failed[event.mount] = now, event.mount_failed
            self._table.nudge()
        elif event.service_started is not None or event.mount_closed is not None:
            self._changes += 1
            self._table.nudge()
        if event.service_started is not None:  # with another configuration, perhaps
            self._known = {}
        if event.mount_closed is not None:
            self._answers.forget(event.mount)
        if event.mount_superseded is not None or event.mount_closed is not None:
            self._failed.pop(event.mount, None)
            self._known = {inputs: name for inputs, name in self._known.items() if name != event.mount}

    @asynccontextmanager
    async def find(self, wanted: Wanted, *, timeout: float) -> AsyncIterator[MountEntry]:
        """The live mount for `wanted`; it is not closed while the caller is inside.

        Raises:
            CommandFailed: the client could not be started, with its class and last words.
            NotReady: mountpod is away, or the client needs longer than `timeout` seconds.
        """
        asked_at = time.monotonic()
        if self._connection != self._bus.connections:  # what mountpod said meanwhile was not heard
            self._connection, self._known = self._bus.connections, {}
        try:
            async with asyncio.timeout(timeout):
                name = self._known.get(wanted.inputs, "")
                is_known = bool(name) and self._mounts.mounted(name) is not None
                if not is_known:
                    name = await self._ask(wanted)
                while True:
                    with self._mounts.expect(name):
                        found = await self._appears(name, wanted, since=asked_at, is_asked=not is_known)
                        if isinstance(found, str):
                            name, is_known = found, False
                            continue
                        self._known[wanted.inputs] = name
                        self._answers.note(wanted.inputs, name)
                        yield found
                        return
        except TimeoutError:
            raise NotReady(f"the client of volume {wanted.volume_id} is not ready after {timeout:.0f} s") from None

    async def _ask(self, wanted: Wanted) -> str:
        """The client's name, from mountpod; while that is away, of the client for the same inputs that runs here."""
        try:
            return await self._ensure(wanted)
        except NotReady:
            name = self._answers.name(wanted.inputs)
            if not name or self._mounts.mounted(name) is None:
                raise
            return name

    async def _ensure(self, wanted: Wanted) -> str:
        """Ask mountpod for a client: it answers at once with the name."""
        if self._leaves_credentials:
            self._leave_credentials(wanted)
        request = EnsureRequest(
            volume_id=wanted.volume_id,
            volume_context=shared_context(wanted.context),
            mount_options=list(wanted.mount_options),
            credentials=wanted.credentials,
            workload=wanted.workload,
            target=wanted.target,
        )
        return (await self._bus.request(self._subject, request, EnsureReply, timeout=ASK_TIMEOUT)).mount

    def _leave_credentials(self, wanted: Wanted) -> None:
        """Put the secrets where mountpod takes them: a 0600 file on a tmpfs, seen whole or not at all."""
        path = self._layout.credentials(wanted.credentials)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, orjson.dumps(dict(wanted.secrets)))

    async def _appears(self, name: str, wanted: Wanted, *, since: float, is_asked: bool) -> MountEntry | str:
        """Wait for the client's mount: the kernel says when it is there, mountpod if it never will be.

        Another client's name if mountpod says by now that that one is to serve: the configuration has changed.
        """
        changes = self._changes
        async with self._table.changes() as changed:
            while True:
                changed.clear()
                entry = self._mounts.mounted(name)
                with suppress(Unmounted):
                    if entry is not None and not await self._probes.is_dead(entry):
                        return entry
                self._raise_failure(name, since=since)
                if not is_asked or changes != self._changes:
                    changes, is_asked = self._changes, True
                    if (answer := await self._ask(wanted)) != name:
                        return answer
                try:
                    async with asyncio.timeout(ASK_AGAIN):
                        await changed.wait()
                except TimeoutError:
                    is_asked = False

    def _raise_failure(self, name: str, *, since: float) -> None:
        failed_at, failure = self._failed.get(name, (0.0, MountFailed()))
        if failed_at > since:
            raise CommandFailed(
                f"the client could not start: {failure.reason}: {failure.message}", reason=failure.reason
            )
