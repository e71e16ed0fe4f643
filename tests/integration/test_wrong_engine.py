"""Metadata engines and object stores that refuse, are silent or want another password; promise 10."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.controller import gateway, volumes
from shared.errors import CommandFailed, DriverError, NotReady
from shared.filesystem import Filesystem
from shared.formatting import ensure_formatted
from shared.juicefs import Juicefs
from shared.runner import run
from tests.integration.controlling import BINARY

MARK = "s3cr3t-mark"
PATIENCE = 4.0
"""Seconds for what never answers; the services wait longer, and less than thirty."""


async def refusal(directory: Path, **secrets: str) -> DriverError:
    """What a file system with this Secret comes to."""
    place = {
        "storage": "file",
        "bucket": f"{directory}/objects",
        "access-key": f"{MARK}-ak",
        "secret-key": f"{MARK}-sk",
    }
    given = {key.replace("_", "-"): value for key, value in secrets.items()}
    fs = Filesystem.parse({"name": "demo", "metaurl": f"sqlite3://{directory}/meta.db"} | place | given)
    with pytest.raises((CommandFailed, NotReady)) as failure:
        await ensure_formatted(await Juicefs.probe(BINARY), fs, timeout=PATIENCE)
    assert MARK not in str(failure.value)
    return failure.value


@pytest.fixture
def refused() -> Iterator[int]:
    """A port where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    """A server that gives one answer to whatever it is told; none if the answer is empty."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "metaurl",
    [
        f"redis://:{MARK}@127.0.0.1:{{port}}/1",
        f"mysql://user:{MARK}@(127.0.0.1:{{port}})/db",
        f"postgres://user:{MARK}@127.0.0.1:{{port}}/db",
    ],
)
async def test_an_engine_that_is_not_there(tmp_path: Path, refused: int, metaurl: str) -> None:
    """Connection refused."""
    failure = await refusal(tmp_path, metaurl=metaurl.format(port=refused))

    assert str(failure).startswith("META_UNREACHABLE: ")
    assert "connection refused" in str(failure)


@pytest.mark.parametrize("metaurl", ["redis://:{mark}@127.0.0.1:{port}/1", "mysql://u:{mark}@(127.0.0.1:{port})/db"])
async def test_an_engine_that_is_silent(tmp_path: Path, metaurl: str) -> None:
    """It takes the connection and says nothing: UNAVAILABLE when time is up."""
    async with server(b"") as port:
        failure = await refusal(tmp_path, metaurl=metaurl.format(mark=MARK, port=port))

    assert isinstance(failure, NotReady)
    assert "META_UNREACHABLE" in str(failure)


async def test_an_engine_that_wants_another_password(tmp_path: Path) -> None:
    """Redis' own words."""
    async with server(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n") as port:
        failure = await refusal(tmp_path, metaurl=f"redis://:{MARK}@127.0.0.1:{port}/1")

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "META_AUTH"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Path]:
    """The socket of a Redis with a password that is hard to write into a URL."""
    # Debian's redis-tools has the server too: one program, which goes by the name that it is called by.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if not program:
        pytest.skip("no redis-server here")
    path = tmp_path / "redis.sock"
    argv = ["redis-server", "--port", "0", "--unixsocket", str(path), "--requirepass", "p@s/s%41", "--save", ""]
    with subprocess.Popen(argv, executable=program, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while not path.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield path
        finally:
            server.terminate()


async def test_redis_refuses_another_password(tmp_path: Path, redis: Path) -> None:
    """The real server's words."""
    failure = await refusal(tmp_path, metaurl=f"unix://:{MARK}@{redis}?db=1")

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "META_AUTH"


async def test_redis_gets_the_password_that_is_meant(tmp_path: Path, redis: Path) -> None:
    """By environment, whatever its encoding in the URL."""
    place = {"metaurl": f"unix://:p%40s%2Fs%2541@{redis}?db=1", "storage": "file", "bucket": f"{tmp_path}/objects"}

    await ensure_formatted(await Juicefs.probe(BINARY), Filesystem.parse({"name": "demo"} | place), timeout=PATIENCE)


async def test_what_is_not_a_database(tmp_path: Path) -> None:
    """A file of something else."""
    (tmp_path / "meta.db").write_text("hello" * 1000)
    failure = await refusal(tmp_path)

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "META_INVALID"


async def test_what_is_not_a_file_system(tmp_path: Path) -> None:
    """Without storage and bucket there is nothing to format with, and nothing is made."""
    failure = await refusal(tmp_path, storage="", bucket="")

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "META_NOT_FORMATTED"


async def test_another_file_system(tmp_path: Path) -> None:
    """The name of one that exists can't be changed."""
    first = {"metaurl": f"sqlite3://{tmp_path}/meta.db", "storage": "file", "bucket": f"{tmp_path}/objects"}
    await ensure_formatted(await Juicefs.probe(BINARY), Filesystem.parse({"name": "first"} | first), timeout=PATIENCE)
    failure = await refusal(tmp_path)

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "FORMAT_MISMATCH"


async def test_an_object_store_that_is_not_there(tmp_path: Path, refused: int) -> None:
    """The client tries three times; its first complaint is enough."""
    failure = await refusal(tmp_path, storage="minio", bucket=f"http://127.0.0.1:{refused}/b")

    assert "BUCKET_UNREACHABLE" in str(failure)


async def test_an_object_store_that_refuses_the_key(tmp_path: Path) -> None:
    """403 with the store's own words."""
    body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with server(head + body) as port:
        failure = await refusal(tmp_path, storage="minio", bucket=f"http://127.0.0.1:{port}/b")

    assert "BUCKET_AUTH" in str(failure)


async def test_an_option_that_is_none(tmp_path: Path) -> None:
    """The client's own words name it."""
    failure = await refusal(tmp_path, format_options="blork=1")

    assert isinstance(failure, CommandFailed)
    assert failure.reason == "MOUNT_OPTION"
    assert "--blork=1" in str(failure)


async def test_changed_keys_are_stored(tmp_path: Path) -> None:
    """The client takes keys from the environment for a new file system only; rotated ones must not be lost."""
    juicefs = await Juicefs.probe(BINARY)
    place = {"metaurl": f"sqlite3://{tmp_path}/meta.db", "storage": "file", "bucket": f"{tmp_path}/objects"}
    for key in ("first", "second", "second"):
        fs = Filesystem.parse({"name": "demo", "access-key": key, "secret-key": f"{MARK}-sk"} | place)
        await ensure_formatted(juicefs, fs, timeout=PATIENCE)

        assert f'"AccessKey": "{key}"' in await run(juicefs.show(fs), timeout=PATIENCE)


async def test_a_command_that_is_given_up_is_gone() -> None:
    """Cancelled or late: no process is left, and nobody waits for it."""
    before = clients_of_ours()
    async with server(b"") as port:
        fs = Filesystem.parse({"name": "demo", "metaurl": f"redis://127.0.0.1:{port}/1"})
        juicefs, started = await Juicefs.probe(BINARY), time.monotonic()
        running = asyncio.create_task(run(juicefs.show(fs), timeout=PATIENCE))
        with pytest.raises(NotReady):
            await run(juicefs.show(fs), timeout=0.5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert time.monotonic() - started < PATIENCE
    assert clients_of_ours() <= before


def clients_of_ours() -> set[str]:
    """Our children that are juicefs, also those that wait to be reaped."""
    children = Path("/proc/self/task").glob("*/children")
    pids = {pid for path in children for pid in path.read_text().split()}
    return {pid for pid in pids if b"juicefs" in Path(f"/proc/{pid}/comm").read_bytes()}


def test_the_services_answer_within_thirty_seconds() -> None:
    """Each step that meets the engine first gives up earlier than that."""
    assert max(volumes._FORMAT_SECONDS, volumes._QUOTA_SECONDS, gateway._START_SECONDS) < 25
