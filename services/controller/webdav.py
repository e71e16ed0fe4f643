"""What the controller does to files of a file system, as WebDAV calls to its gateway (RFC 4918)."""

import asyncio
import re
from html import unescape
from typing import Final
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from shared.domain import Subpath
from shared.errors import NotReady

_CREATED, _MISSING, _NO_PARENT, _LOCKED = 201, 404, 409, 423
_STEP_SECONDS: Final = 0.01
_SECONDS: Final = 15.0
_DELETE_SECONDS: Final = 3600.0
"""A big tree takes its time. Who asked may leave before: the gateway goes on, and asking again goes on from there."""
_PROPERTIES: Final = b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop><resourcetype/><getetag/></prop></propfind>'
_RESPONSE = re.compile(r"<D:response><D:href>([^<]*)</D:href>(.*?)</D:response>", re.DOTALL)
_ETAG = re.compile(r"<D:getetag>([^<]*)</D:getetag>")
_DIRECTORY: Final = "<D:collection"


class Webdav:
    """Every method raises NotReady when the gateway fails it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def make_directory(self, path: Subpath) -> None:
        """The directory and those above it; 0700, and no error when they are there."""
        if await self._call("MKCOL", path, accept=(_CREATED, 405, _NO_PARENT)) == _NO_PARENT:
            await self.make_directory(_parent(path))
            await self._call("MKCOL", path, accept=(_CREATED, 405))

    async def put(self, path: Subpath, content: bytes) -> None:
        """Write a file, 0600; its directory must be there. Others may see a part of it: `move` it to its name."""
        await self._ask("PUT", path, accept=(_CREATED, 204), content=content)

    async def get(self, path: Subpath) -> bytes | None:
        """The content of a file; None if there is none."""
        status, content = await self._ask("GET", path, accept=(200, _MISSING))
        return None if status == _MISSING else content

    async def is_directory(self, path: Subpath) -> bool:
        return _DIRECTORY in (await self._find(path, depth=0)).get(path.text, "")

    async def is_there(self, path: Subpath) -> bool:
        return bool(await self._find(path, depth=0))

    async def list(self, path: Subpath) -> dict[str, str]:
        """The names in a directory, each with a tag that changes with its content; empty if there is no such one."""
        found = await self._find(path, depth=1)
        found.pop(path.text, None)
        return {name.rpartition("/")[2]: "".join(_ETAG.findall(properties)) for name, properties in found.items()}

    async def move(self, path: Subpath, target: Subpath) -> bool:
        """Rename a file unless the target is there; True if it was renamed."""
        headers = {"Destination": quote(str(target)), "Overwrite": "F"}
        status, _ = await self._ask("MOVE", path, accept=(_CREATED, 412), headers=headers)
        return status == _CREATED

    async def delete_tree(self, path: Subpath) -> None:
        """Delete a file, or a directory with all that is in it; no error if there is none."""
        await self._call("DELETE", path, accept=(204, _MISSING), seconds=_DELETE_SECONDS)

    async def is_up(self) -> bool:
        try:
            await self._call("OPTIONS", Subpath(), accept=(200,))
        except NotReady:
            return False
        return True

    async def _find(self, path: Subpath, *, depth: int) -> dict[str, str]:
        """Path → properties."""
        headers = {"Depth": str(depth)}
        _, content = await self._ask("PROPFIND", path, accept=(207, _MISSING), headers=headers, content=_PROPERTIES)
        found = _RESPONSE.findall(content.decode(errors="replace"))
        return {unquote(unescape(href)).strip("/"): properties for href, properties in found}

    async def _call(self, method: str, path: Subpath, *, accept: tuple[int, ...], seconds: float = _SECONDS) -> int:
        return (await self._ask(method, path, accept=accept, seconds=seconds))[0]

    async def _ask(
        self,
        method: str,
        path: Subpath,
        *,
        accept: tuple[int, ...],
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        seconds: float = _SECONDS,
    ) -> tuple[int, bytes]:
        url = URL(quote(str(path)), encoded=True)
        status, answer = _LOCKED, b""
        try:
            async with asyncio.timeout(seconds):
                while status == _LOCKED:  # another call works on the same path
                    async with self._session.request(method, url, headers=headers, data=content) as response:
                        status, answer = response.status, await response.read()
                    await asyncio.sleep(_STEP_SECONDS if status == _LOCKED else 0)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotReady(f"the gateway to the file system failed ({type(error).__name__}): try again") from None
        if status not in accept:
            raise NotReady(f"the gateway to the file system answered {status} to {method} {path}")
        return status, answer


def _parent(path: Subpath) -> Subpath:
    return Subpath(text=path.text.rpartition("/")[0])
