"""DeleteVolume, beside the recursive DELETE of the same tree through a gateway."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from demo.driver import free_port, program
from shared.domain import GIB, Secret
from shared.filesystem import Filesystem
from shared.juicefs import Juicefs
from tests.bench.rows import Row, Tell, alternate, latency, timed
from tests.bench.setting import setting

_SAMPLES: Final = 20
_DIRECTORIES: Final = 2
_FILES: Final = 5
_CONTENT: Final = b"x" * 4096
_PATIENCE: Final = 10.0


async def delete(tell: Tell) -> list[Row]:
    """DeleteVolume of a volume that holds 2 directories with 5 files each."""
    async with setting("nats", "controller") as place:
        first = await place.csi.create("bench-first", size=GIB)  # also makes the file system
        filesystem = Filesystem.parse(place.csi.secrets)
        async with _gateway(filesystem) as writer, _gateway(filesystem) as eraser:

            async def ours(_: int) -> float:
                volume = await place.csi.create(f"pvc-{uuid.uuid4()}", size=GIB)
                await _fill(writer, volume.volume_context["subPath"])
                return await timed(place.csi.delete(volume.volume_id))

            async def floor(number: int) -> float:
                await _ask(writer, "MKCOL", f"bare-{number}")
                await _fill(writer, f"bare-{number}")
                return await timed(_ask(eraser, "DELETE", f"bare-{number}/"))

            mine, least = await alternate(_SAMPLES, ours, floor, tell=tell)
        await place.csi.delete(first.volume_id)
    what = f"DeleteVolume, {_DIRECTORIES} directories of {_FILES} files"
    return [latency("delete", mine, least, what=what, times=3)]


async def _fill(gateway: aiohttp.ClientSession, directory: str) -> None:
    for one in range(_DIRECTORIES):
        await _ask(gateway, "MKCOL", f"{directory}/{one}")
        for file in range(_FILES):
            await _ask(gateway, "PUT", f"{directory}/{one}/{file}", content=_CONTENT)


async def _ask(gateway: aiohttp.ClientSession, method: str, path: str, *, content: bytes = b"") -> None:
    async with gateway.request(method, f"/{path}", data=content or None) as answer:
        answer.raise_for_status()


@asynccontextmanager
async def _gateway(filesystem: Filesystem) -> AsyncIterator[aiohttp.ClientSession]:
    """`juicefs webdav` by hand, while inside."""
    address, password = f"127.0.0.1:{free_port()}", uuid.uuid4().hex
    command = Juicefs(binary=Path(program("juicefs"))).webdav(
        filesystem, address=address, user="bench", password=Secret(password)
    )
    process = await asyncio.create_subprocess_exec(
        *command.argv, env=command.whole_environment(), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        login = aiohttp.BasicAuth("bench", password)
        async with aiohttp.ClientSession(f"http://{address}", auth=login) as session:
            await _serves(session)
            yield session
    finally:
        process.terminate()
        await process.wait()


async def _serves(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(_PATIENCE):
        while True:
            try:
                await _ask(session, "OPTIONS", "")
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
            else:
                return
