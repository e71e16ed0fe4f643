"""Gateways: one for each file system, only while needed, nobody else's, and without privileges."""

import asyncio
import os
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import aiohttp
import pytest

from shared.domain import Secret
from shared.errors import NotReady
from tests.integration.controlling import BINARY, Controller, controlling, filesystem, gateway_pids
from tests.integration.unprivileged import NOBODY, python_for
from tests.waiting import until


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    async with controlling(filesystem(tmp_path)) as controller:
        yield controller


async def test_a_crowd_shares_one_format_and_one_gateway(controller: Controller) -> None:
    """Twenty volumes at once in a new file system."""
    await asyncio.gather(*(controller.create(f"v{number}") for number in range(20)))

    assert len(await controller.at_root()) == 20
    assert len(gateway_pids()) == 1


async def test_a_gateway_that_dies_is_started_again(controller: Controller) -> None:
    """Memory is a cache, and so is a process."""
    await controller.create("v")
    (killed,) = gateway_pids()
    os.kill(killed, signal.SIGKILL)
    await until(lambda: killed not in gateway_pids())

    await until_ready(partial(controller.create, "w"))

    assert await controller.at_root() == {"v", "w"}


async def until_ready(call: Callable[[], Awaitable[Any]]) -> None:
    """As an orchestrator does: again while it is UNAVAILABLE."""
    async with asyncio.timeout(10):
        while True:
            try:
                await call()
            except NotReady:
                continue
            return


async def test_an_idle_gateway_ends(tmp_path: Path) -> None:
    """Nothing is kept that nobody uses."""
    async with controlling(filesystem(tmp_path), idle=0.05) as controller:
        await controller.create("v")
        await until(lambda: not gateway_pids())

        assert await controller.at_root() == {"v"}


async def test_a_gateway_keeps_its_password(controller: Controller) -> None:
    """Whoever else is on the machine gets nothing from it, and sees no password in its command line."""
    await controller.create("v")
    (pid,) = gateway_pids()
    shown = Path(f"/proc/{pid}/cmdline").read_text().strip("\0").replace("\0", " ")
    address = shown.split()[3]

    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/v") as answer:
        assert answer.status == 401
    assert " ".join(
        controller.juicefs.webdav(controller.fs, address=address, user="", password=Secret("")).argv
    ).startswith(shown)


SCRIPT = """
import asyncio, os, sys, structlog
from pathlib import Path
from tests.integration.controlling import controlling, filesystem, gateway_pids

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))

async def main(directory, binary):
    async with controlling(filesystem(Path(directory)), binary=Path(binary)) as controller:
        await controller.create("v")
        print(os.getuid(), *gateway_pids(), flush=True)
        sys.stdin.read()
        assert await controller.volumes.delete(controller.fs, "v")
        assert await controller.at_root() == set()
        print("deleted")

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def another_controller(directory: Path, *, user: int) -> Iterator[subprocess.Popen[str]]:
    """A process with another user that goes on when its standard input ends."""
    paths = [str(Path(__file__).parents[2]), sysconfig.get_path("purelib")]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": ":".join(paths)}
    argv = [python_for(user), "-B", "-c", SCRIPT, str(directory), str(BINARY)]
    with subprocess.Popen(
        argv, env=environment, user=user, group=user, extra_groups=[], cwd="/", text=True, stdin=PIPE, stdout=PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory of an unprivileged user, outside of what only root may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chown(directory, NOBODY, NOBODY)
        yield Path(directory)


async def test_an_unprivileged_user_can_delete_what_root_wrote(nobodys: Path) -> None:
    """Architecture 4: no FUSE, no privileges (docs/adr/0002-webdav-as-unprivileged.md)."""
    with another_controller(nobodys, user=NOBODY) as process:
        assert process.stdout
        line = await asyncio.to_thread(process.stdout.readline)
        async with controlling(filesystem(nobodys)) as root:
            await root.make("v/tree/of/root")
        said, _ = await asyncio.to_thread(process.communicate, "")

    assert line.split()[0] == str(NOBODY)
    assert said == "deleted\n"


async def test_gateways_end_with_their_controller(tmp_path: Path) -> None:
    """Also when it is killed with SIGKILL."""
    with another_controller(tmp_path, user=os.geteuid()) as process:
        assert process.stdout
        line = await asyncio.to_thread(process.stdout.readline)
        gateway = Path(f"/proc/{line.split()[1]}")
        assert gateway.exists()
        process.kill()
        await asyncio.to_thread(process.wait)

    await until(lambda: not gateway.exists())
