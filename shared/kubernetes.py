"""Kubernetes as six verbs over any kind of object, on plain JSON. The words of its errors are in `shared.apiserver`."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
import orjson

from shared.apiserver import ApiServer, Conflict, Forbidden, Gone, Request, Status, refusal
from shared.errors import InvalidRequest, NotReady
from shared.kubeconfig import Access

__all__ = ["Conflict", "Event", "Forbidden", "Gone", "Kind", "Kubernetes"]  # and the kinds

T = TypeVar("T")

_PAGE: Final = 500  # objects
_LIFE: Final = 300  # seconds of one watch; a bookmark comes each minute
_LOG_BYTES: Final = 64 << 10
_SOMETHING_ELSE: Final = "the API server is away (something else answers in its place)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Where the objects of one kind are found."""

    path: str
    plural: str
    is_namespaced: bool = False


PODS: Final = Kind(path="/api/v1", plural="pods", is_namespaced=True)
SECRETS: Final = Kind(path="/api/v1", plural="secrets", is_namespaced=True)
EVENTS: Final = Kind(path="/api/v1", plural="events", is_namespaced=True)
CONFIG_MAPS: Final = Kind(path="/api/v1", plural="configmaps", is_namespaced=True)
SERVICE_ACCOUNTS: Final = Kind(path="/api/v1", plural="serviceaccounts", is_namespaced=True)
CLAIMS: Final = Kind(path="/api/v1", plural="persistentvolumeclaims", is_namespaced=True)
PERSISTENT_VOLUMES: Final = Kind(path="/api/v1", plural="persistentvolumes")
NODES: Final = Kind(path="/api/v1", plural="nodes")
NAMESPACES: Final = Kind(path="/api/v1", plural="namespaces")
STORAGE_CLASSES: Final = Kind(path="/apis/storage.k8s.io/v1", plural="storageclasses")
CSI_DRIVERS: Final = Kind(path="/apis/storage.k8s.io/v1", plural="csidrivers")
CSI_NODES: Final = Kind(path="/apis/storage.k8s.io/v1", plural="csinodes")
LEASES: Final = Kind(path="/apis/coordination.k8s.io/v1", plural="leases", is_namespaced=True)
JOBS: Final = Kind(path="/apis/batch/v1", plural="jobs", is_namespaced=True)


class Event(msgspec.Struct, frozen=True, gc=False):
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object's JSON as it came."""

    type: str
    object: msgspec.Raw


class _PageMetadata(msgspec.Struct, rename="camel", gc=False):
    rest: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, gc=False):
    metadata: _PageMetadata


class Kubernetes:
    """A connection to one API server.

    A call takes `deadline` seconds at most. A watch is broken when it is silent for `silence` seconds.
    """

    def __init__(
        self, session: aiohttp.ClientSession, access: Access, *, deadline: float = 10.0, silence: float = 90.0
    ) -> None:
        self._server = ApiServer(session, access, deadline=deadline)
        self._silence = silence

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, *, kubeconfig: str = "", deadline: float = 10.0, silence: float = 90.0
    ) -> AsyncIterator["Kubernetes"]:
        """As the service account, or as a kubeconfig says. The API server need not be there yet.

        Raises:
            InvalidRequest: there is no service account, or the kubeconfig can't be used.
        """
        access = await Access.load(kubeconfig)
        headers = {"Accept": "application/json", "User-Agent": "juicefs-csi"}
        async with aiohttp.ClientSession(headers=headers) as session:
            yield cls(session, access, deadline=deadline, silence=silence)

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> dict[str, Any]:
        return await self._ask("GET", kind, _path(kind, namespace, name))

    async def list(self, kind: Kind, *, namespace: str = "", labels: str = "", fields: str = "") -> dict[str, Any]:
        """Those of a namespace, or all: `metadata.resourceVersion` to watch from, and `items`."""
        items: list[Any] = []
        version = ""
        async with aclosing(self.pages(kind, namespace=namespace, labels=labels, fields=fields)) as pages:
            async for page in pages:
                found = _object(page)
                items += found.get("items") or ()
                version = found["metadata"]["resourceVersion"]
        return {"metadata": {"resourceVersion": version}, "items": items}

    async def pages(
        self, kind: Kind, *, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """The JSON of a list in parts, for who decodes less than everything.

        Raises:
            Gone: it took so long that the rest of the list is no longer there.
        """
        query = {"limit": str(_PAGE), **_selectors(labels, fields)}
        while True:
            page = await self._server.call(_request("GET", kind, _path(kind, namespace), query=query))
            yield page
            rest = _decoded(page, _Page).metadata.rest
            if not rest:
                return
            query["continue"] = rest

    async def create(self, kind: Kind, body: Mapping[str, Any], *, namespace: str = "") -> dict[str, Any]:
        return await self._ask("POST", kind, _path(kind, namespace), body=body)

    async def patch(
        self, kind: Kind, name: str, body: Mapping[str, Any], *, namespace: str = "", subresource: str = ""
    ) -> dict[str, Any]:
        """A JSON merge patch (RFC 7386). With `metadata.resourceVersion` in it, a change in between is a Conflict."""
        return await self._ask("PATCH", kind, _path(kind, namespace, name, subresource), body=body)

    async def replace(
        self, kind: Kind, name: str, body: Mapping[str, Any], *, namespace: str = "", subresource: str = ""
    ) -> dict[str, Any]:
        """The whole object. With `metadata.resourceVersion` in it, a change in between is a Conflict."""
        return await self._ask("PUT", kind, _path(kind, namespace, name, subresource), body=body)

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace: int | None = None,
    ) -> None:
        """With `uid` or `resource_version`, another object of that name or a changed one is a Conflict.

        `grace` is how many seconds a pod's containers get.
        """
        wanted = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {key: value for key, value in wanted.items() if value}
        body: dict[str, Any] = {"preconditions": preconditions} if preconditions else {}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        await self._server.call(_request("DELETE", kind, _path(kind, namespace, name), body=body))

    async def log(self, pod: str, *, namespace: str, container: str, lines: int = 20, previous: bool = False) -> str:
        """The last lines that a container wrote; with `previous`, the run before this one."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(_LOG_BYTES)}
        query |= {"previous": "true"} if previous else {}
        text = await self._server.call(_request("GET", PODS, _path(PODS, namespace, pod, "log"), query=query))
        return text.decode(errors="replace")

    async def watch(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        since: str,
        on_open: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[Event, None]:
        """What happens after the resource version `since`, for minutes; `on_open` hears when it has begun.

        Raises:
            Gone: `since` is too old.
            NotReady: the connection broke, or was silent although bookmarks were due.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(_LIFE),
            **_selectors(labels, fields),
        }
        request = _request("GET", kind, _path(kind, namespace), query=query)
        async with self._server.stream(request, silence=self._silence) as lines:
            on_open()
            async for line in lines:
                event = _decoded(line, Event)
                if event.type == "ERROR":
                    status = _decoded(event.object, Status)
                    raise refusal(status.code, status, request)
                yield event

    async def _ask(
        self, method: str, kind: Kind, path: str, *, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        return _object(await self._server.call(_request(method, kind, path, body=body)))


def _request(
    method: str,
    kind: Kind,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Request:
    return Request(
        method=method, path=path, query=urlencode(query or {}, quote_via=quote), body=body, is_secret=kind == SECRETS
    )


def _path(kind: Kind, namespace: str, *parts: str) -> str:
    """`parts` are a name and a subresource, if any."""
    if parts and kind.is_namespaced and not namespace:
        raise InvalidRequest(f"{kind.plural}: an object is named by its namespace, too")
    where = ("namespaces", _segment(namespace)) if kind.is_namespaced and namespace else ()
    name = [_segment(parts[0]), *filter(None, parts[1:])] if parts else []
    return "/".join((kind.path, *where, kind.plural, *name))


def _segment(name: str) -> str:
    """A name as a part of a path: the API server decodes a path before it splits it, so quoting is not enough."""
    if name in {"", ".", ".."} or "/" in name or "%" in name:
        raise InvalidRequest("the name of an object in Kubernetes can't be empty, '.' or '..', nor hold '/' or '%'")
    return quote(name, safe="")


def _selectors(labels: str, fields: str) -> dict[str, str]:
    given = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in given.items() if value}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise NotReady(_SOMETHING_ELSE)
    return found


def _decoded(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:
        raise NotReady(_SOMETHING_ELSE) from None
