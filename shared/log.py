"""Logs: an event is a short lower-case phrase, facts are keys, and one request id runs from the CSI call to its end.

Values that may be secret are never logged, and an exception that is no word of ours is shown by its type and the places
it passed through, since its text may quote what it choked on. Everything goes to stderr, also what libraries log.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from shared.errors import DriverError

if TYPE_CHECKING:
    from structlog.typing import Processor

FORMATS: Final = ("auto", "json", "console")
LEVELS: Final = ("debug", "info", "warning", "error")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the CSI call that is being worked on, here or in the service that asked; empty when there is none."""


@contextmanager
def bound(*, request: str, **keys: str) -> Iterator[None]:
    """Every log line and every event within belongs to this request."""
    token = request_id.set(request)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request, **keys):
            yield
    finally:
        request_id.reset(token)


def in_words(error: BaseException) -> str:
    """The text of a DriverError; of anything else only the type, since its text may quote a secret."""
    return str(error) if isinstance(error, DriverError) else type(error).__name__


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The exceptions of a group, whatever groups lie between."""
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from leaves(one)
        else:
            yield one


def places(error: BaseException) -> list[str]:
    """Where an exception came from, outermost first, and what caused it: types and places, never a value."""
    found = [
        f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    found.append(in_words(error))
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__ or error.__context__,)
    for cause in inner:
        if cause is not None:
            found += ["because of", *places(cause)]
    return found


def configure(*, level: str = "info", style: str = "auto") -> None:
    """Set up structlog and the libraries' logging; `auto` is the console on a terminal and JSON elsewhere."""
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_as_places,
    ]
    render = _console() if is_console else structlog.processors.JSONRenderer(serializer=_json)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[libraries], level=logging.WARNING, force=True)


def _console() -> Any:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ)


def _json(event: Any, **_: Any) -> str:
    """An object that is no plain value is named, not printed: messages and requests print everything they hold."""
    try:
        return orjson.dumps(event, default=_name).decode()
    except TypeError:  # text that is no UTF-8, a number beyond 64 bits: a log line never fails
        return json.dumps(event, default=_name, skipkeys=True)


def _name(value: object) -> str:
    return f"<{type(value).__name__}>"


def _exception_as_places(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["places"] = places(error)
    return event
