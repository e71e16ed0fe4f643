"""A runtime whose clients are only names. What it promises is in `tests/contract/test_runtime.py`."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from services.mountpod.failures import back_off
from shared.api.juicefs.v1 import EnsureRequest, MountReport
from shared.errors import Busy, DriverError, NotFound
from shared.settings import ClientSettings, parse

START: Final = 0.05
"""Seconds until a client has its mount, or has failed."""


@dataclass(kw_only=True)
class _Client:
    settings: ClientSettings
    is_asked: bool = True
    is_mounted: bool = False
    has_served: bool = False


class FakeRuntime:
    """Implements `Runtime`. A test says which clients fail, and closes their mounts in the place of the node."""

    def __init__(self) -> None:
        self.failing: dict[str, DriverError] = {}
        self.ensured: list[ClientSettings] = []
        self.restarted: list[str] = []
        self.ended: list[str] = []
        self.retries = 0
        self.starts = Counter[str]()
        self._clients: dict[str, _Client] = {}
        self._failed: dict[str, tuple[float, DriverError]] = {}

    async def resolve(self, request: EnsureRequest) -> ClientSettings:
        return parse(
            volume_id=request.volume_id,
            context=request.volume_context,
            mount_options=request.mount_options,
            credentials=request.credentials,
        )

    async def ensure(self, settings: ClientSettings) -> None:
        name = settings.mount_name
        self.ensured.append(settings)
        if (client := self._clients.get(name)) is not None:
            if client.settings.digest != settings.digest:
                raise DriverError(f"two clients would be called {name}")
            client.is_asked = client.is_asked or not client.is_mounted
            return
        until, error = self._failed.get(name, (0.0, None))
        if error is not None and asyncio.get_running_loop().time() < until:
            raise error.with_traceback(None)
        self._start(settings)

    def _start(self, settings: ClientSettings) -> None:
        name = settings.mount_name
        self._clients[name] = _Client(settings=settings)
        self.starts[name] += 1
        asyncio.get_running_loop().call_later(START, self._come_up, name)

    def _come_up(self, name: str) -> None:
        if (error := self.failing.get(name)) is not None:
            del self._clients[name]
            self._failed[name] = asyncio.get_running_loop().time() + back_off(1), error
        else:
            self._clients[name] = replace(self._clients[name], is_asked=False, is_mounted=True, has_served=True)

    async def restart(self, name: str) -> None:
        if name not in self._clients:
            raise NotFound(f"no client is called {name}")
        if not self._clients[name].is_mounted:
            raise Busy(f"{name} is starting")
        self.restarted.append(name)

    async def end(self, name: str) -> None:
        self.ended.append(name)
        client = self._clients.get(name)
        if client is None or client.is_mounted or not client.has_served:
            return
        del self._clients[name]
        if client.is_asked:
            self._start(client.settings)

    def announce_end(self, name: str, seconds: float | None) -> None: ...

    def clients(self) -> Mapping[str, ClientSettings]:
        return {name: client.settings for name, client in self._clients.items()}

    def is_mounted(self, name: str) -> bool:
        return name in self._clients and self._clients[name].is_mounted

    def close(self, name: str) -> None:
        """The node has unmounted it."""
        self._clients[name].is_mounted = False

    def retry(self) -> None:
        self.retries += 1

    def look(self, mounts: Mapping[str, MountReport]) -> None: ...
