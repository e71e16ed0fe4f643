"""A program's life, in a process of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from grpclib.client import Channel

from shared.api.csi.v1 import ControllerStub, CreateVolumeRequest, Volume
from tests.unit.csi_server import socket_path


@dataclass
class Program:
    process: asyncio.subprocess.Process
    socket: Path

    async def line(self) -> dict[str, Any]:
        """The next log line."""
        assert self.process.stderr is not None
        found: dict[str, Any] = json.loads(await asyncio.wait_for(self.process.stderr.readline(), 10))
        return found

    async def end(self) -> tuple[int | None, list[dict[str, Any]]]:
        """Exit code and remaining log lines."""
        _, errors = await asyncio.wait_for(self.process.communicate(), 10)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines()]


@asynccontextmanager
async def program(*arguments: str, **environment: str) -> AsyncIterator[Program]:
    async with socket_path() as path:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tests.unit.app_program", "--log-format", "json"),
            *("--endpoint", str(path), *arguments),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        try:
            yield Program(process, path)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@asynccontextmanager
async def health(*arguments: str) -> AsyncIterator[tuple[aiohttp.ClientSession, Program]]:
    """A client of a running program's health port, which its first line tells."""
    async with program(*arguments) as running:
        told = await running.line()
        assert told["event"] == "serving health"
        async with aiohttp.ClientSession(f"http://{told['host']}:{told['port']}") as client:
            yield client, running


async def test_it_lives_and_is_ready() -> None:
    """/healthz and /readyz answer 200."""
    async with health() as (client, _):
        assert (await client.get("/healthz")).status == 200
        ready = await client.get("/readyz")
        assert (ready.status, await ready.json()) == (200, {"ready": True, "reasons": {}})


async def test_it_says_why_it_is_not_ready() -> None:
    """503, with the reason of each check that fails."""
    async with health("--fault", "day") as (client, _):
        ready = await client.get("/readyz")
        assert (ready.status, await ready.json()) == (503, {"ready": False, "reasons": {"moon": "it is day"}})


async def test_it_tells_its_metrics() -> None:
    """For Prometheus, each with the node's name; the four old names without `_total`."""
    async with health("--node-id", "n7") as (client, _):
        text = await (await client.get("/metrics")).text()

    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('node_name="n7"' in line for line in lines)
    names = {line.partition("{")[0] for line in lines}
    assert names >= {"juicefs_volume_errors", "juicefs_volume_del_errors", "juicefs_provision_errors"}
    assert names >= {
        "juicefs_csi_loop_lag_seconds",
        "process_resident_memory_bytes",
        "juicefs_csi_bus_reconnects_total",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_in_order(number: signal.Signals) -> None:
    """With code 0 and nothing to complain about."""
    async with health() as (_, running):
        running.process.send_signal(number)
        code, lines = await running.end()

    assert code == 0
    assert [line for line in lines if line["event"] != "serving CSI"] == []


async def test_fifty_calls_in_flight_when_it_is_told_to_stop() -> None:
    """All are answered, then the program ends, and its socket is gone (promise 11)."""
    async with program() as running:
        while (await running.line())["event"] != "serving CSI":
            pass
        channel = Channel(path=str(running.socket))
        stub, names = ControllerStub(channel), [f"v{number}" for number in range(50)]
        calls = [asyncio.create_task(stub.create_volume(CreateVolumeRequest(name=name))) for name in names]
        while (await running.line()).get("count") != 50:
            pass
        running.process.terminate()
        replies = await asyncio.gather(*calls)
        code, _ = await running.end()
        channel.close()
        assert (code, running.socket.exists()) == (0, False)

    assert [reply.volume for reply in replies] == [Volume(volume_id=name) for name in names]


async def test_a_second_signal_ends_it_at_once() -> None:
    """For one who does not want to wait."""
    async with program("--fault", "stubborn") as running:
        while (await running.line())["event"] != "serving CSI":
            pass
        running.process.terminate()
        assert (await running.line())["event"] == "not yet"
        running.process.terminate()
        code, (line,) = await running.end()

    assert (code, line["event"]) == (1, "stopped at once, since asked twice")


async def test_a_start_that_fails_is_one_line() -> None:
    """The cause and what to do; no traceback; code 1."""
    async with program("--fault", "driver") as running:
        await running.line()
        code, (line,) = await running.end()

    assert (code, line["event"], line["cause"]) == (1, "cannot go on", "no /dev/fuse: load the fuse module")


async def test_a_health_port_that_is_taken_is_one_line() -> None:
    """It names the option."""
    async with health() as (client, _):
        port = str(client._base_url and client._base_url.port)
        async with program("--health-address", f"127.0.0.1:{port}") as second:
            code, (line,) = await second.end()

    assert code == 1
    assert line["cause"].startswith(f"--health-address 127.0.0.1:{port}: ")


@pytest.mark.parametrize(("fault", "place"), [("bug", "ValueError"), ("background", "RuntimeError")])
async def test_a_fault_is_told_without_its_text(fault: str, place: str) -> None:
    """A bug, or a background task that ended: places and types, and code 1."""
    async with program("--fault", fault) as running:
        code, (*_, line) = await running.end()

    assert (code, line["event"]) == (1, "ended by a fault")
    assert place in line["places"]
    assert "hunter2" not in str(line)
