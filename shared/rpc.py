"""What every CSI call gets, in one place: its id and log line, its measure, its deadline, and a status for its error.

A handler raises the words of `shared.errors`; here they become gRPC statuses. Nothing else does.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields
from functools import partial
from secrets import token_hex
from typing import Any, Final

import betterproto2
import structlog
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import RecvMessage, RecvRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from shared import log
from shared.errors import DriverError, InvalidRequest
from shared.log import request_id
from shared.metrics import Metrics

__all__ = ["Interceptor", "Requests", "new_request_id", "request_id"]

_DEFAULT_SECONDS: Final = 60.0
_SLACK: Final = 0.1  # seconds: a caller who leaves so short before its deadline leaves because of it
_LONGEST_MESSAGE: Final = 4096  # characters; a header, and some clients refuse more than 8 KiB of them
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET: Final = frozenset({"Probe", "GetPluginInfo", "NodeGetInfo", "NodeGetVolumeStats"})

_log = structlog.get_logger()

_Handler = Callable[[Stream[Any, Any]], Awaitable[None]]


def new_request_id(offered: str = "") -> str:
    """The id that was offered, if it is a plain word; else 16 hex characters."""
    return offered if _SANE_ID.fullmatch(offered) else token_hex(8)


class Interceptor:
    """Stands before the handlers of one grpclib server, and knows which calls are running."""

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running: set[asyncio.Task[Any]] = set()
        self._is_draining = False

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def attach(self, server: Server) -> None:
        listen(server, RecvRequest, self._on_request)
        listen(server, RecvMessage, _on_message)

    def refuse(self) -> None:
        """From now on new calls are told to try again, and so is one that is cut off."""
        self._is_draining = True

    async def drain(self, grace: float) -> None:
        """Refuse new calls, and wait until those that run are answered, `grace` seconds at most."""
        self.refuse()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            if late:
                _log.warning("calls cut off at the end", count=len(late))

    async def _on_request(self, event: RecvRequest) -> None:
        if self._is_draining:
            raise GRPCError(Status.UNAVAILABLE, "the service is stopping: try again")
        # The task ends when the answer is written: after the handler, whose end would be too early to close.
        if (task := asyncio.current_task()) is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        event.method_func = partial(
            self._call,
            handler=event.method_func,
            rpc=event.method_name.rpartition("/")[2],
            request=new_request_id(str(event.metadata.get("x-request-id", ""))),
        )

    async def _call(self, stream: Stream[Any, Any], *, handler: _Handler, rpc: str, request: str) -> None:
        started, failure, code = time.perf_counter(), None, Status.OK
        with log.bound(request=request, rpc=rpc):
            try:
                async with asyncio.timeout(_DEFAULT_SECONDS if stream.deadline is None else None):
                    await handler(stream)
            except asyncio.CancelledError:
                is_late = stream.deadline is not None and stream.deadline.time_remaining() < _SLACK
                code = Status.DEADLINE_EXCEEDED if is_late else Status.CANCELLED
                if self._is_draining:  # cut off by us: the caller is to hear it, and not wait
                    failure = GRPCError(code := Status.UNAVAILABLE, "the service stopped before it was done: try again")
                    raise failure from None
                raise
            except Exception as error:  # noqa: BLE001 - whatever a call runs into becomes a status
                failure = _status(error, request=request)
                code = failure.status
                if code is Status.INTERNAL:
                    _log.error("call failed unexpectedly", exc_info=error)
                raise failure from None
            finally:
                seconds = time.perf_counter() - started
                self._metrics.rpc.labels(rpc, code.name).observe(seconds)
                if code is not Status.OK and rpc in self._metrics.failed:
                    self._metrics.failed[rpc].inc()
                _tell(rpc, code=code, seconds=seconds, failure=failure)


class Requests(ProtoCodec):
    """Decodes requests and refuses what is none: betterproto2 takes a number where the proto has a text, and so on."""

    def decode(self, data: bytes, message_type: type[Any]) -> Any:
        try:
            message = message_type.FromString(data)
        except Exception:  # noqa: BLE001 - the parser raises what it likes
            message = None
        if message is None or not _is_sound(message):
            raise InvalidRequest(f"this is no {message_type.__name__}")
        return message


_TYPES: Final = {"string": str, "bool": bool, "int64": int, "enum": int, "message": betterproto2.Message}


def _is_sound(message: betterproto2.Message) -> bool:
    return all(
        isinstance(value, wanted) and (wanted is not betterproto2.Message or _is_sound(value))
        for value, wanted in _typed(message)
    )


def _typed(message: Any) -> Iterator[tuple[Any, type[Any]]]:
    """Every value in the message, with the type that the proto says."""
    for field in fields(message):
        if (told := field.metadata.get("betterproto")) is None:
            continue
        value = getattr(message, field.name)
        if told.proto_type == "map":  # of CSI's requests: of texts to texts
            yield from ((text, str) for pair in value.items() for text in pair)
        elif value is not None or not told.optional:
            yield from ((one, _TYPES[told.proto_type]) for one in (value if told.repeated else [value]))


async def _on_message(event: RecvMessage) -> None:
    """Runs in the call's own task, so what is bound here ends with it."""
    volume = getattr(event.message, "volume_id", "") or getattr(event.message, "name", "")
    if isinstance(volume, str) and volume:
        structlog.contextvars.bind_contextvars(volume=volume[:128])


def _status(error: Exception, *, request: str) -> GRPCError:
    match error:
        case GRPCError():
            return error
        case DriverError():
            return GRPCError(Status[error.status], _sendable(str(error)))
        case TimeoutError():
            return GRPCError(Status.DEADLINE_EXCEEDED, f"not done within {_DEFAULT_SECONDS:g} s: try again")
        case _:
            return GRPCError(
                Status.INTERNAL, f"unexpected {type(error).__name__}: see the service's log for request {request}"
            )


def _sendable(text: str) -> str:
    """What a client of JuiceFS printed may be no UTF-8, and long."""
    return text[:_LONGEST_MESSAGE].encode(errors="replace").decode()


def _tell(rpc: str, *, code: Status, seconds: float, failure: GRPCError | None) -> None:
    is_quiet = rpc in _QUIET or rpc.endswith("Capabilities")
    facts = {"code": code.name, "seconds": round(seconds, 4)}
    if code is not Status.OK:
        _log.warning("call failed", **facts, error=failure.message if failure is not None else "the caller left")
    elif is_quiet:
        _log.debug("call answered", **facts)
    else:
        _log.info("call answered", **facts)
