"""Kubernetes Events: what `kubectl describe` shows of an object.

Saying never waits. The same words about the same object within ten minutes are one Event that counts; they are kept
here, in a bounded number, while the API server is away. Whoever says something sees to it that no secret is in it.
"""

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final

import structlog

from shared import log
from shared.errors import DriverError, NotFound, NotReady
from shared.kubernetes import EVENTS, Kubernetes

_SAME: Final = 600.0  # seconds
_WAITING: Final = 1000  # words that are not sent yet, at most
_REMEMBERED: Final = 4096
_MESSAGE: Final = 1024  # characters; Kubernetes' own limit for new Events
_NAME: Final = 253 - 17
_RETRY: Final = 2.0  # seconds
_LAST_WORDS: Final = 2.0  # seconds, when the program ends

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The object that an Event is about. One without a namespace has its Events in `default`."""

    kind: str
    api_version: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    about: Reference
    reason: str
    message: str
    is_warning: bool


@dataclass(slots=True, kw_only=True)
class _Waiting:
    first: datetime
    last: datetime
    count: int = 1


@dataclass(slots=True, kw_only=True)
class _Said:
    name: str
    count: int
    at: float


class Recorder:
    """`component` and `host` tell who says it. `dropped` counts what there was no room for, or no right."""

    def __init__(self, api: Kubernetes, *, component: str, host: str = "") -> None:
        self.dropped = 0
        self._api = api
        self._component = component
        self._host = host
        self._waiting: OrderedDict[_Words, _Waiting] = OrderedDict()
        self._said: OrderedDict[_Words, _Said] = OrderedDict()
        self._something = asyncio.Event()
        self._is_full = False
        self._is_away = False

    def say(self, about: Reference, *, reason: str, message: str, is_warning: bool = False) -> None:
        """`reason` is one CamelCase word; the same about the same object, again, only counts."""
        words = _Words(about=about, reason=reason, message=_short(message), is_warning=is_warning)
        now = datetime.now(UTC)
        if (waiting := self._waiting.get(words)) is not None:
            waiting.last = now
            waiting.count += 1
        elif len(self._waiting) < _WAITING:
            self._waiting[words] = _Waiting(first=now, last=now)
            self._something.set()
        else:
            self._drop()

    async def run(self) -> None:
        """Send what is said, until cancelled; then for two seconds more, if something is left."""
        try:
            while True:
                await self._something.wait()
                if not await self._send_waiting():
                    await asyncio.sleep(_RETRY)
        except asyncio.CancelledError:
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self._send_waiting()
            except TimeoutError:
                pass
            raise

    async def _send_waiting(self) -> bool:
        """False if the API server is away; what could not be said then waits on."""
        while self._waiting:
            words, waiting = self._waiting.popitem(last=False)
            try:
                await self._send(words, waiting)
            except NotReady as error:
                self._keep(words, waiting)
                if not self._is_away:
                    self._is_away = True
                    _log.warning("events wait", error=str(error))
                return False
            except DriverError as error:
                self.dropped += 1
                _log.warning("event refused", reason=words.reason, object=words.about.name, error=str(error))
            except Exception as error:  # noqa: BLE001 - one Event must not silence the others
                self.dropped += 1
                _log.error("event not sent", reason=words.reason, error=log.in_words(error), exc_info=error)
            except BaseException:
                self._keep(words, waiting)
                raise
        self._something.clear()
        self._is_full = self._is_away = False
        return True

    async def _send(self, words: _Words, waiting: _Waiting) -> None:
        namespace = words.about.namespace or "default"
        now = asyncio.get_running_loop().time()
        said = self._said.get(words)
        if said is not None and now < said.at + _SAME:
            count = said.count + waiting.count
            try:
                body = {"count": count, "lastTimestamp": _text(waiting.last)}
                await self._api.patch(EVENTS, said.name, body, namespace=namespace)
            except NotFound:  # its time was over, or somebody removed it
                pass
            else:
                self._remember(words, _Said(name=said.name, count=count, at=now))
                return
        name = _name(words.about.name)
        await self._api.create(EVENTS, self._body(words, waiting, name=name), namespace=namespace)
        self._remember(words, _Said(name=name, count=waiting.count, at=now))

    def _body(self, words: _Words, waiting: _Waiting, *, name: str) -> dict[str, Any]:
        about = words.about
        involved = {
            "kind": about.kind,
            "apiVersion": about.api_version,
            "name": about.name,
            "namespace": about.namespace,
            "uid": about.uid,
        }
        return {
            "metadata": {"name": name},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "type": "Warning" if words.is_warning else "Normal",
            "reason": words.reason,
            "message": words.message,
            "firstTimestamp": _text(waiting.first),
            "lastTimestamp": _text(waiting.last),
            "count": waiting.count,
            "source": {"component": self._component, **({"host": self._host} if self._host else {})},
            "reportingComponent": self._component,
            "reportingInstance": self._host or self._component,
        }

    def _remember(self, words: _Words, said: _Said) -> None:
        self._said[words] = said
        self._said.move_to_end(words)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)

    def _keep(self, words: _Words, waiting: _Waiting) -> None:
        """Back to the front; the same may have been said meanwhile."""
        if (newer := self._waiting.get(words)) is not None:
            waiting.last, waiting.count = newer.last, waiting.count + newer.count
        self._waiting[words] = waiting
        self._waiting.move_to_end(words, last=False)

    def _drop(self) -> None:
        self.dropped += 1
        if not self._is_full:
            self._is_full = True
            _log.warning("events dropped", waiting=len(self._waiting))


def _name(about: str) -> str:
    """A name that no other Event has: of the object, as far as it can be a part of a name."""
    readable = re.sub(r"[^a-z0-9.-]|\.(?=[.-])|(?<=-)\.", "-", about.lower())[:_NAME].strip(".-") or "event"
    return f"{readable}.{token_hex(8)}"


def _short(message: str) -> str:
    return message if len(message) <= _MESSAGE else f"{message[: _MESSAGE - 1]}…"


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
