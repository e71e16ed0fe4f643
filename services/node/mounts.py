"""The clients' mounts on this machine: prepared before a client starts, seen in the mount table, closed when unused."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from services.node.bindings import Bindings
from services.node.keepers import Keepers
from services.node.leftovers import adopt, sweep_points
from services.node.probe import DeadMount, Probes, Unmounted
from services.node.session import read_session
from shared import alive, mounter
from shared.api.juicefs.v1 import ClientGivenUp, Event, MountReport
from shared.errors import DriverError, InUse, InvalidRequest, NotFound, NotReady
from shared.events import Say
from shared.layout import Client, Layout
from shared.metrics import Metrics
from shared.mounttable import MountEntry, MountTable
from shared.private_file import write_private
from shared.settings import is_mount_name
from shared.threads import in_thread

log = structlog.get_logger()

_UNMOUNT_TIMEOUT: Final = 10.0
_BUSY: Final = 2.0
"""Seconds that the kernel may call an unused mount busy."""
_PREPARED: Final = 60.0
_NEVER: Final = (0.0, 0.0)
"""Seconds that what was prepared is left to the client that is about to start in it."""


class Mounts:
    """What the node knows of each client's mount. The truth is the mount table; here is only who expects what."""

    def __init__(
        self, *, layout: Layout, table: MountTable, bindings: Bindings, probes: Probes, say: Say, metrics: Metrics
    ) -> None:
        self._layout = layout
        self._table = table
        self._bindings = bindings
        self._tasks: asyncio.TaskGroup | None = None
        self.restored = asyncio.Event()
        self._probes, self.say = probes, say
        self._keepers = Keepers(layout=layout, say=say, metrics=metrics)
        self.orphans = self._keepers.orphans
        self._expected: Counter[str] = Counter()
        self._prepared: dict[str, tuple[float, float]] = {}  # when, by our clock, and by that of who asked
        self.closing, self.lost = set[str](), set[str]()

    async def run(self) -> None:
        """Keep the clients' descriptors until cancelled; first fetch those of the clients that outlived us."""
        adopt(self._layout, self._table, self._bindings)
        sweep_points(self._layout, self._table)
        async with asyncio.TaskGroup() as self._tasks:
            for name in self.names():
                if self._client(name).is_claimed or self._table.top(str(self._client(name).mount_point)):
                    self._tasks.create_task(self._restore(name, self._tasks), name=f"restore {name}")
            self.restored.set()
            await asyncio.get_running_loop().create_future()

    async def _restore(self, name: str, tasks: asyncio.TaskGroup) -> None:
        """Of its own for each client: one that hangs does not keep us from serving the others."""
        try:
            await self._keepers.open(name, tasks).fetch()
            await self._clear(self._client(name))
        except (OSError, DriverError) as error:
            log.warning("client not taken over", mount=name, error=str(error))

    async def prepare(self, name: str, *, keep: bool = False, identity: str = "", asked: float = 0.0) -> None:
        """Everything a client needs before it starts; a mount whose connection has ended makes way.

        With `keep` its directory stays until it was closed, or has failed: nobody else leaves anything in it.

        Raises:
            InvalidRequest: not a mount name. NotReady: the mount is being closed.
        """
        client = self._client(name)
        if name in self.closing or self._tasks is None:
            raise NotReady(f"{name} is being closed, or the node service has just started: ask again")
        client.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if keep:
            self._renounce(client, identity)
        self._prepared[name] = time.time(), asked
        self._keepers.open(name, self._tasks)
        await self._clear(client)
        if self._table.top(str(client.mount_point)) is None:
            mounter.make_mount_point(client.mount_point)

    def _renounce(self, client: Client, identity: str) -> None:
        """Keep the directory for a client of this identity; the connection of another one is at an end.

        Raises:
            InUse: it is served still.
        """
        known = client.kept.read_text() if client.kept.exists() else ""
        if known and known != identity:
            if alive.is_alive(client.alive):
                raise InUse(f"{client.name} serves another file system or directory: end its users first")
            if keeper := self._keepers.get(client.name):
                keeper.forget()
            if (entry := self.mounted(client.name)) is not None:
                self._probes.abort(entry)
                self._take_off(entry)
            for path in (client.address, client.resume):
                path.unlink(missing_ok=True)
        write_private(client.kept, identity.encode())

    async def release(self, name: str) -> None:
        """Take the descriptor of a client that leaves, and note what the next one needs to go on with what is open.

        Raises:
            NotFound: no such client runs. NotReady: it does not leave (yet), or does not hand over.
        """
        if not self._client(name).leaving.exists():
            raise NotReady(f"the client of {name} has not said that it leaves")
        if (entry := self.mounted(name)) is None or (keeper := self._keepers.get(name)) is None:
            raise NotFound(f"no client is mounted as {name} on this machine")
        session = await read_session(entry)
        if not await keeper.release():
            raise NotReady(f"the client of {name} does not hand over its connection")
        session.write(self._client(name).resume)

    async def _clear(self, client: Client) -> None:
        """Take dead mounts off the client's mount point; their targets are healed when the next is there."""
        while (entry := self._table.top(str(client.mount_point))) is not None:
            keeper = self._keepers.get(client.name)
            if keeper is None or keeper.holds:
                return
            try:
                await self._probes.ask(entry)
            except DeadMount:
                self._take_off(entry)
            except Unmounted:  # or under something that covers the mount root: looking again might not end
                return
            except NotReady:
                if not client.alive.exists() or alive.is_alive(client.alive):  # without it we can't tell
                    return
                # Its processes were killed while they waited for themselves: only an end of the connection frees them.
                self._probes.abort(entry)
                self._take_off(entry)
            else:
                return

    def _take_off(self, entry: MountEntry) -> None:
        """Unmount what was looked at before an await, if it is still what lies there."""
        if self._table.top(entry.mount_point) == entry:
            mounter.unmount(entry.mount_point)

    def names(self, volume: str = "") -> list[str]:
        """Mount names that exist here; of one volume if its unique id is given."""
        return [name for name in self._layout.names() if is_mount_name(name, unique=volume)]

    def mounted(self, name: str) -> MountEntry | None:
        """The client's mount as the mount table shows it, alive or not; None while it is being closed."""
        entry = self._table.top(str(self._client(name).mount_point))
        return entry if entry is not None and entry.is_juicefs and name not in self.closing else None

    def present(self) -> dict[str, MountEntry]:
        """Each client's own mount, alive or not, by mount name: one look at the table for all of them."""
        points = {str(self._client(name).mount_point): name for name in self.names() if name not in self.closing}
        return {points[entry.mount_point]: entry for entry in self._table.clients() if entry.mount_point in points}

    def refetch(self) -> None:
        """Ask clients again whose descriptor we lack."""
        for name in self._keepers.overdue(self.present()):
            if self._tasks is not None:
                self._tasks.create_task(self._restore(name, self._tasks), name=f"restore {name}")

    def give_up(self, name: str, *, after: float) -> None:
        """End an orphan's connection: calls into it fail from now on, instead of hanging; `after` is in seconds."""
        if keeper := self._keepers.get(name):
            keeper.forget()
        if (entry := self.mounted(name)) is not None:
            with suppress(DriverError):
                self._probes.abort(entry)
        self.say(ClientGivenUp(after_ms=int(after * 1000)), mount=name)

    def binds(self, name: str) -> list[MountEntry]:
        """Every bind of this client's mounts, alive or dead, also those that kubelet made of ours: its references."""
        return self._binds(name, self._table.clients())

    def _binds(self, name: str, table: list[MountEntry]) -> list[MountEntry]:
        point = str(self._client(name).mount_point)
        ours = self._bindings.targets(name) | {point}
        devices = {entry.device for entry in table if entry.mount_point in ours}
        return [entry for entry in table if entry.device in devices and entry.mount_point != point]

    def strays(self) -> Iterator[tuple[str, MountEntry, MountEntry]]:
        """Binds that are not of their client's present mount: (mount name, bind, present mount)."""
        table = self._table.clients()
        points = {str(self._client(name).mount_point): name for name in self.names()}
        present = {points[entry.mount_point]: entry for entry in table if entry.mount_point in points}
        current = {entry.device for entry in present.values()}
        owners = {entry.device: name for entry in table if (name := self._bindings.name(entry.mount_point))}
        points_of = {entry.mount_id: entry.mount_point for entry in table}
        covered = {entry.parent_id for entry in table if points_of.get(entry.parent_id) == entry.mount_point}
        for bind in table:
            name = owners.get(bind.device, "")
            is_well = bind.mount_id in covered or bind.device in current or bind.mount_point in points
            if name in present and not is_well:
                yield name, bind, present[name]

    @contextmanager
    def expect(self, name: str) -> Iterator[None]:
        """While inside, a publish is about to bind this mount: it is not closed."""
        self._expected[name] += 1
        try:
            yield
        finally:
            self._expected[name] -= 1
            if not self._expected[name]:
                del self._expected[name]

    async def close(self, name: str) -> bool:
        """Unmount the client's mount unless somebody uses it; True if somebody does. The client ends by itself."""
        if self._is_used(name) or name in self.closing:
            return True
        self.closing.add(name)
        try:
            if not await self._unmount(name):
                return True
            self._keepers.close(name)
            mounter.remove_mount_point(self._client(name).mount_point)
        finally:
            self.closing.discard(name)
            self._table.nudge()  # a publish may wait to know how this ends
        return False

    def _is_used(self, name: str) -> bool:
        return bool(self._expected[name] or self.binds(name))

    async def _unmount(self, name: str) -> bool:
        """True once nothing is mounted; False if it is in use. A glance of the client itself is no use: it passes."""
        point = self._client(name).mount_point
        deadline = time.monotonic() + _BUSY
        while self._table.top(str(point)) is not None:
            unmounting = in_thread(lambda: mounter.unmount_unused(point), name=f"unmount {name}")
            async with asyncio.timeout(_UNMOUNT_TIMEOUT):
                is_unmounted = await unmounting
            if not is_unmounted:
                if self._is_used(name) or time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.05)
        return True

    def report(self) -> list[MountReport]:
        """What is mounted here; what is left of clients that nothing needs any more is removed on the way."""
        adopt(self._layout, self._table, self._bindings)
        for name in self.names():
            if self._prepared.get(name, _NEVER)[0] < time.time() - _PREPARED:
                self._sweep(name)
        table, present = self._table.clients(), self.present()
        return [
            MountReport(
                mount=name,
                device=present[name].device if name in present else "",
                targets=[bind.mount_point for bind in self._binds(name, table)],
                expected=bool(self._expected[name]),
                lost=name in self.lost,
            )
            for name in self.names()
        ]

    def hear(self, event: Event) -> None:
        """Events of mountpod: a client that has ended, or never came up, leaves an empty directory."""
        has_ended = event.mount_closed is not None or event.mount_failed is not None
        # One that was said before the next client was prepared may be heard afterwards.
        if (
            has_ended
            and is_mount_name(event.mount)
            and event.time_ms / 1000 >= self._prepared.get(event.mount, _NEVER)[1]
        ):
            self._sweep(event.mount, has_ended=True)

    def _sweep(self, name: str, *, has_ended: bool = False) -> None:
        """Remove what is left of a client that mountpod has given up; rmdir refuses what holds something."""
        client = self._client(name)
        if self._expected[name] or name in self.closing or self.mounted(name) or client.state.exists():
            return
        if client.kept.exists():
            if not has_ended or self.binds(name):
                return
            client.remove_leftovers()
        self._keepers.close(name)
        client.remove_notes()
        with suppress(OSError):
            mounter.remove_mount_point(client.mount_point)
            client.directory.rmdir()
        self._prepared.pop(name, None)

    def _client(self, name: str) -> Client:
        if not is_mount_name(name):
            raise InvalidRequest("not the name of a mount")
        return self._layout.client(name)
