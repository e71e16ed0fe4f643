"""The bus without NATS, in one program. What it promises is in `tests/contract/test_bus.py`, beside the real one."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import betterproto2

from shared import events, log
from shared.api.juicefs.v1 import Event
from shared.bus import Bus, End
from shared.errors import DriverError, InvalidRequest, NotReady

R = TypeVar("R", bound=betterproto2.Message)
Served = tuple[type[betterproto2.Message], Callable[[Any], Awaitable[betterproto2.Message]]]


class MemoryBus(Bus):
    """What is served on one is asked on all that were made from it by `beside`; `said` is every event of this one."""

    def __init__(self, *, service: str = "mountpod", node: str = "n1") -> None:
        super().__init__(url="nats://127.0.0.1:1", service=service, node=node)
        self.said: list[Event] = []
        self.is_away = False
        self._served: dict[str, Served] = {}
        self._listeners: list[tuple[str, Callable[[Event], None]]] = []

    def beside(self, *, service: str) -> "MemoryBus":
        """Another service's part in the same conversation."""
        other = MemoryBus(service=service, node=self.node)
        other._served, other._listeners = self._served, self._listeners
        return other

    @property
    def is_connected(self) -> bool:
        return not self.is_away

    async def request(self, subject: str, message: betterproto2.Message, reply: type[R], *, timeout: float) -> R:
        service = subject.split(".")[2]
        if self.is_away or subject not in self._served:
            raise NotReady(f"nobody answers on {subject}: is {service} running?")
        kind, answer = self._served[subject]
        try:
            asked = kind.parse(bytes(message))
        except Exception:  # noqa: BLE001 - as the real one
            raise InvalidRequest(f"the payload is no {kind.__name__}") from None
        try:
            async with asyncio.timeout(timeout):
                return reply.parse(bytes(await answer(asked)))
        except TimeoutError:
            raise NotReady(f"{service} did not answer on {subject} within {timeout:g} s") from None
        except DriverError:
            raise
        except Exception as error:  # noqa: BLE001 - as the real one
            raise DriverError(f"{type(error).__name__} in {service}") from None

    def serve(
        self, subject: str, request: type[Any], answer: Callable[[Any], Awaitable[Any]], *, queue: str = ""
    ) -> End:
        served = self._served[subject] = request, answer

        def end() -> None:
            if self._served.get(subject) is served:
                del self._served[subject]

        return end

    def on_event(self, subject: str, hear: Callable[[Event], None]) -> End:
        listener = (subject.replace(">", "*"), hear)
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def say(self, what: betterproto2.Message, *, volume_id: str = "", mount: str = "", node: str = "") -> None:
        said = events.event(what, volume_id=volume_id, mount=mount, request_id=log.request_id.get())
        said.service, said.node = self._service, self.node
        self.said.append(said)
        for subject, hear in self._listeners:
            if fnmatchcase(
                events.subject(said), subject
            ):  # never heard before `say` returns, and no failure of its own
                asyncio.get_running_loop().call_soon(_tell, hear, said)

    def kinds(self) -> list[str]:
        return [events.kind(said) for said in self.said]


def _tell(hear: Callable[[Event], None], said: Event) -> None:
    with suppress(Exception):  # as the real one
        hear(said)
