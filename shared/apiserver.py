"""One request to the API server, and its answer in the driver's words.

    DriverError
    ├── Busy ← Conflict      somebody else changed the object since it was read, or it is another by now
    ├── Forbidden            a right is missing: the API server's words say which
    └── Gone                 the resource version is too old to go on from: list again

Besides, of `shared.errors`: NotFound, AlreadyExists and InvalidRequest in the API server's words, NotReady while it is
away. Neither tokens nor what a Secret holds are in an error's text.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
import orjson
import yarl

from shared.errors import AlreadyExists, Busy, DriverError, InvalidRequest, NotFound, NotReady
from shared.kubeconfig import Access

_PATIENCE: Final = 2.0  # seconds between two tries at most when the API server has too much to do
_TYPES: Final = {"PATCH": "application/merge-patch+json"}
_LIMIT: Final = 1024  # characters of the API server's message
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError)
_OK, _UNKNOWN, _CROWDED = 200, 401, 429


class Conflict(Busy):
    """The object is not the one that was read: read it again."""


class Forbidden(DriverError):
    """Our service account lacks a right, or the API server does not know us."""


class Gone(DriverError):
    """The history from this resource version on is no longer there."""


_WORDS: Final[dict[int, type[DriverError]]] = {
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    **dict.fromkeys((400, 405, 406, 413, 415, 422), InvalidRequest),
}


class _Cause(msgspec.Struct, gc=False):
    field: str = ""


class _Details(msgspec.Struct, gc=False):
    causes: list[_Cause] = []


class Status(msgspec.Struct, gc=False):
    """What the API server says instead of an object."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`path` and `query` are encoded. With `is_secret`, nothing of the answer's text goes into an error."""

    method: str
    path: str
    query: str = ""
    body: Mapping[str, Any] | None = None
    is_secret: bool = False


class ApiServer:
    """Answers within `deadline` seconds, or is away."""

    def __init__(self, session: aiohttp.ClientSession, access: Access, *, deadline: float) -> None:
        self._session = session
        self._access = access
        self.deadline = deadline

    async def call(self, request: Request) -> bytes:
        """The answer's body."""
        try:
            async with asyncio.timeout(self.deadline):
                return await self._answer(request)
        except _FAILURES as error:
            raise _away(error, within=self.deadline) from None

    @asynccontextmanager
    async def stream(self, request: Request, *, silence: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer line by line as it comes; `silence` is how many seconds may pass without a byte."""
        try:
            async with asyncio.timeout(self.deadline):
                response = await self._send(request, silence=silence)
                if response.status != _OK:
                    async with response:
                        require_success(response.status, await response.read(), request)
        except _FAILURES as error:
            raise _away(error, within=self.deadline) from None
        try:
            yield _lines(response.content, silence=silence)
        finally:
            # Amidst a stream, a connection is of no use to others; an orderly end of TLS would wait for the other side.
            if response.connection is not None and response.connection.transport is not None:
                response.connection.transport.abort()
            response.close()

    async def _answer(self, request: Request) -> bytes:
        while True:
            async with await self._send(request, silence=None) as response:
                body = await response.read()
            if response.status != _CROWDED:  # which says that nothing was done
                return require_success(response.status, body, request)
            await asyncio.sleep(_pause(response.headers.get("Retry-After", "")))

    async def _send(self, request: Request, *, silence: float | None) -> aiohttp.ClientResponse:
        token = await self._access.authorization()
        response = await self._send_as(token, request, silence=silence)
        if response.status == _UNKNOWN and await self._access.renew(token):
            response.close()
            return await self._send_as(await self._access.authorization(), request, silence=silence)
        return response

    async def _send_as(self, token: str, request: Request, *, silence: float | None) -> aiohttp.ClientResponse:
        url = f"{self._access.url}{request.path}" + (f"?{request.query}" if request.query else "")
        headers = {"Authorization": token} if token else {}
        if request.body is not None:
            headers["Content-Type"] = _TYPES.get(request.method, "application/json")
        return await self._session.request(
            request.method,
            yarl.URL(url, encoded=True),  # else it would be cleaned, and mean something else
            data=None if request.body is None else orjson.dumps(request.body),
            headers=headers,
            ssl=self._access.tls,
            server_hostname=self._access.server_name,
            proxy=self._access.proxy,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=silence),
        )


def require_success(code: int, body: bytes, request: Request) -> bytes:
    """The body of an answer with this HTTP status.

    Raises:
        DriverError: the word for what went wrong.
    """
    if _OK <= code < 300:  # noqa: PLR2004 - the next class of statuses
        return body
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, ValueError):
        status = Status()
    raise refusal(code, status, request)


def refusal(code: int, status: Status, request: Request) -> DriverError:
    """The word for an answer that is no success."""
    if code == _UNKNOWN:
        return Forbidden("the API server does not know us: check the token of the service account or kubeconfig")
    words = _words(code, status, request)
    word = _WORDS.get(code, NotReady)
    if word is Conflict and status.reason == "AlreadyExists":
        word = AlreadyExists
    return word(f"the API server is away ({words})" if word is NotReady else words)


def _words(code: int, status: Status, request: Request) -> str:
    if not request.is_secret or _WORDS.get(code) is not InvalidRequest:
        return status.message[:_LIMIT] or f"HTTP {code} to {request.method} {request.path}"
    # What is wrong with a Secret may be quoted, its keys too, so only where it is wrong is said.
    fields = ", ".join(cause.field.partition("[")[0] for cause in status.details.causes) if status.details else ""
    return f"the API server refuses {request.method} {request.path}: {status.reason or code}" + (
        f" in {fields}" if fields else ""
    )


async def _lines(content: aiohttp.StreamReader, *, silence: float) -> AsyncIterator[bytes]:
    """Its own line reader would refuse what is longer than its buffer."""
    parts: list[bytes] = []
    try:
        async for chunk in content.iter_any():
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                if line := b"".join((*parts, end)):
                    yield line
                parts.clear()
            parts.append(rest)
    except _FAILURES as error:
        raise _away(error, within=silence) from None


def _away(error: Exception, *, within: float) -> NotReady:
    """Texts of aiohttp's own may hold a request with its headers, so they are not used."""
    code = getattr(error, "errno", None)
    if isinstance(error, TimeoutError):
        words = f"silent for {within:g} s"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        words = "its certificate is not trusted"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        words = "its name is not known"
    elif isinstance(code, int) and code > 0:
        words = os.strerror(code).lower()
    elif isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        words = "connection lost"
    else:
        words = type(error).__name__
    return NotReady(f"the API server is away ({words})")


def _pause(text: str) -> float:
    return min(float(text) if text.isascii() and text.isdigit() else 0.5, _PATIENCE)
