"""The runtime whose clients are processes of this machine. They outlive every restart of ours."""

import asyncio
from collections.abc import Mapping
from functools import partial

import structlog

from services.mountpod.client import Client, failed
from services.mountpod.credentials import Credentials
from services.mountpod.failures import Failures
from services.mountpod.launch import Launcher, read_state, remove_files
from services.mountpod.node import NodeService
from shared.alive import is_alive
from shared.api.juicefs.v1 import EnsureRequest, MountClosed, MountReport
from shared.bus import Bus
from shared.errors import DriverError, NotFound, NotReady
from shared.juicefs import Juicefs
from shared.layout import Layout
from shared.mounttable import MountTable
from shared.settings import ClientSettings, is_mount_name, parse

_log = structlog.get_logger()


class Processes:
    """Implements `Runtime`. `table` is watched by somebody else."""

    def __init__(self, *, layout: Layout, juicefs: Juicefs, table: MountTable, bus: Bus, node: NodeService) -> None:
        self._layout = layout
        self._table = table
        self._bus = bus
        self._node = node
        self._tasks: asyncio.TaskGroup | None = None
        self._credentials = Credentials(layout)
        self._launcher = Launcher(juicefs=juicefs, credentials=self._credentials, node=node, on_exit=table.nudge)
        self._clients: dict[str, Client] = {}
        self._failures = Failures()

    async def run(self) -> None:
        """Go on with the clients that are here, and keep all until cancelled; then they go on without us."""
        async with asyncio.TaskGroup() as self._tasks:
            self._adopt()
            await asyncio.get_running_loop().create_future()

    async def resolve(self, request: EnsureRequest) -> ClientSettings:
        return parse(
            volume_id=request.volume_id,
            context=request.volume_context,
            mount_options=request.mount_options,
            credentials=request.credentials,
        )

    async def ensure(self, settings: ClientSettings) -> None:
        name = settings.mount_name
        if (client := self._clients.get(name)) is not None:
            if client.settings.digest != settings.digest:
                raise DriverError(f"two clients would be called {name}: give the volume another mount option")
            client.ask()
            return
        self._failures.check(name)
        self._credentials.spooled(settings.credentials)
        self._begin(self._client(settings))

    async def restart(self, name: str) -> None:
        if (client := self._clients.get(name)) is None:
            raise NotFound(f"no client is called {name[:64]!r} on this machine")
        await client.restart()

    async def end(self, name: str) -> None:
        if (client := self._clients.get(name)) is not None:
            await client.end()

    def announce_end(self, name: str, seconds: float | None) -> None: ...

    def clients(self) -> Mapping[str, ClientSettings]:
        return {name: client.settings for name, client in self._clients.items()}

    def retry(self) -> None:
        for client in self._clients.values():
            client.retry()

    def look(self, mounts: Mapping[str, MountReport]) -> None:
        for client in self._clients.values():
            client.tidy()
        self._credentials.sweep({client.settings.credentials for client in self._clients.values()})
        self._failures.tidy()

    def _adopt(self) -> None:
        for name in filter(is_mount_name, self._layout.names()):
            try:
                self._adopt_one(name)
            except OSError as error:
                _log.error("client not adopted", mount=name, cause=error.strerror, file=error.filename)

    def _adopt_one(self, name: str) -> None:
        paths = self._layout.client(name)
        state = read_state(paths)
        if state is not None:
            client = self._client(state.settings)
            client.adopt(was_mounted=state.is_mounted)
            self._begin(client)
        elif is_alive(paths.alive):
            _log.error("a client runs here and its settings are lost", mount=name, file=str(paths.state))
        else:
            remove_files(paths)

    def _client(self, settings: ClientSettings) -> Client:
        name = settings.mount_name
        return Client(
            settings=settings,
            paths=self._layout.client(name),
            launcher=self._launcher,
            table=self._table,
            node=self._node,
            say=partial(self._bus.say, volume_id=settings.volume_id, mount=name),
        )

    def _begin(self, client: Client) -> None:
        if self._tasks is None:
            raise NotReady("mountpod is starting")
        self._clients[client.paths.name] = client
        self._tasks.create_task(self._live(client), name=f"client {client.paths.name}")

    async def _live(self, client: Client) -> None:
        """The client's life, and what is remembered of it. It ends no other's."""
        name = client.paths.name
        try:
            await client.run()
        except DriverError as error:
            self._failed(client, error)
        except Exception as error:  # noqa: BLE001 - whatever one client runs into, the service goes on
            _log.error("client failed", mount=name, exc_info=error)
            self._failed(client, DriverError(f"{type(error).__name__} in mountpod: see its log"))
        else:
            del self._clients[name]
            self._failures.forget(name)
            self._say_closed(client)

    def _failed(self, client: Client, error: DriverError) -> None:
        """Before the failure is said the next publish must meet it, else it would wait for a client that is gone."""
        name = client.paths.name
        del self._clients[name]
        pause = self._failures.add(name, error)
        _log.warning("client could not be started", mount=name, error=str(error), next_try=pause)
        client.say(failed(error))

    def _say_closed(self, client: Client) -> None:
        if client.settings.clean_cache:
            _log.warning("juicefs/clean-cache is not supported yet: the cache stays", mount=client.paths.name)
        client.say(MountClosed())
