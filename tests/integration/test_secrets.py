"""No secret is ever shown: marked values go in wherever a Secret has something to hide, and are searched for."""

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from demo.driver import Driver, program
from demo.orchestrator import Orchestrator
from tests.integration.local import local

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

MARK = "m4rk3d"
GIB = 1 << 30

GOOD = {
    "access-key": f"{MARK}-access",
    "secret-key": f"{MARK}-secret",
    "format-options": f"session-token={MARK}-session",
    "envs": f'{{"REDIS_PASSWORD": "{MARK}-redis", "ANY_OTHER": "{MARK}-any"}}',
    "any-other": f"{MARK}-other",
}
"""Beside the keys of the throwaway file system, these change nothing."""

# No file system, and each is said so in the end; a port of 1 is nobody's.
BAD = {
    "redis": {"metaurl": f"redis://user:{MARK}-1@127.0.0.1:1/0"},
    "redis, encoded": {"metaurl": f"redis://:{MARK}%40%23%2F@127.0.0.1:1/0"},
    "mysql": {"metaurl": f"mysql://user:{MARK}#/@(127.0.0.1:1)/db"},
    "postgres": {"metaurl": f"postgres://user:{MARK}-3@127.0.0.1:1/db?sslmode=disable"},
    "postgres, in the query": {"metaurl": f"postgres://127.0.0.1:1/db?password={MARK}-4&sslmode=disable"},
    "no engine": {"metaurl": f"oracle://user:{MARK}-5@127.0.0.1:1/db"},
    "no URL": {"metaurl": f"redis://user:{MARK}-6@127.0.0.1:port/0"},
    "name": {"name": f"{MARK}!"},
    "envs": {"envs": f"{{{MARK}: ["},
    "envs, a name": {"envs": f'{{"{MARK} x": "1"}}'},
    "envs, a map": {"envs": f'{{"A": {{"b": "{MARK}"}}}}'},
    "format options": {"format-options": f"{MARK}!=1"},
    "format options, unknown": {"format-options": f"block-size=4,session-token={MARK}-7,nonsense=1"},
    "access key": {"access-key": f"{MARK}\nx"},
    "secret key": {"secret-key": f"{MARK}\0x"},
    "bucket": {"bucket": f"{MARK}"},
    "encryption key": {"encrypt_rsa_key": f"{MARK}"},
    "token": {"metaurl": "", "token": f"{MARK}"},
}


@contextmanager
def watched_command_lines() -> Iterator[set[str]]:
    """Every command line on this machine that ever held the mark, while inside."""
    seen, done = set[str](), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    if MARK.encode() in (line := path.read_bytes()):
                        seen.add(line.decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@dataclass(kw_only=True)
class Shown:
    """Everything that anybody could see."""

    answers: dict[str, GRPCError | None] = field(default_factory=dict)
    command_lines: set[str] = field(default_factory=set)
    logs: dict[str, str] = field(default_factory=dict)
    events: str = ""


async def live(csi: Orchestrator, secrets: dict[str, str], *, name: str) -> None:
    """A volume's whole life with these secrets."""
    csi = Orchestrator(controller=csi.controller, node=csi.node, pods=csi.pods, secrets=secrets)
    await csi.create(name, size=GIB)
    target = csi.target(name, name)
    await csi.publish(name, target, context={"subPath": name})
    await csi.unpublish(name, target)
    await csi.delete(name)


async def failure(csi: Orchestrator, secrets: dict[str, str], *, name: str, call: str) -> GRPCError | None:
    csi = Orchestrator(controller=csi.controller, node=csi.node, pods=csi.pods, secrets=secrets)
    try:
        await (csi.publish(name, csi.target(name, name)) if call == "publish" else csi.create(name, size=GIB))
    except GRPCError as error:
        return error
    return None


def logs(driver: Driver) -> dict[str, str]:
    files = [*driver.base.glob("*.log"), *driver.layout.run.rglob("*.log")]
    return {str(path.relative_to(driver.base)): path.read_text(errors="replace") for path in files}


def events(driver: Driver) -> str:
    command = [program("juicefs-csi-tap"), "--nats", driver.nats_url, "--json", "--since", "1h", "--no-follow"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown() -> AsyncIterator[Shown]:
    async with local() as machine:
        driver, good = machine.driver, machine.driver.secrets | GOOD
        shown = Shown()
        with watched_command_lines() as shown.command_lines:
            await live(machine.csi, good, name="marked")
            calls = {
                f"{call}: {what}": failure(machine.csi, good | change, name=f"bad-{place}", call=call)
                for place, (what, change) in enumerate(BAD.items())
                for call in ("create", "publish")
            }
            shown.answers |= dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))
        shown.logs, shown.events = logs(driver), await asyncio.to_thread(events, driver)
        yield shown


async def test_every_bad_secret_is_refused(shown: Shown) -> None:
    """With a status that tells why; whatever else is checked below would be empty without."""
    wanted = {Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION, Status.UNAVAILABLE}
    assert {what: error for what, error in shown.answers.items() if error is None or error.status not in wanted} == {}


async def test_no_message_shows_a_secret(shown: Shown) -> None:
    """Promise 22: gRPC errors."""
    assert {what: error.message for what, error in shown.answers.items() if error and MARK in str(error.message)} == {}


async def test_no_log_shows_a_secret(shown: Shown) -> None:
    """Promise 22: logs, of the services and of the clients."""
    assert {"controller.log", "mountpod.log", "node.log"} <= set(shown.logs)
    assert [line for text in shown.logs.values() for line in text.splitlines() if MARK in line] == []


async def test_no_event_shows_a_secret(shown: Shown) -> None:
    """Promise 22: the event stream, as the tap replays it."""
    assert '"kind":"VolumeCreated"' in shown.events
    assert '"kind":"MountFailed"' in shown.events
    assert MARK not in shown.events


async def test_no_command_line_shows_a_secret(shown: Shown) -> None:
    """Promise 22: argv, which everybody on the machine can read."""
    assert shown.command_lines == set()
