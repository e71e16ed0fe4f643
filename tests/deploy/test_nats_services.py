"""The services themselves under deploy/base/nats.conf: a volume's whole life, and nothing is refused to any of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

import demo.driver
from demo.driver import Driver, program
from shared.nats_auth import SERVICES, passwords
from tests.integration.local import Local, local, until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "base" / "nats.conf"
PASSWORDS = passwords()
GIB = 1 << 30


class Guarded(Driver):
    """Each service enters by its own password, from a file, as in its pod."""

    def command(self, name: str) -> list[str]:
        whole = super().command(name)
        if name == "nats":
            whole.remove("-js")
            return [*whole, "-c", str(CONFIGURATION), "-m", str(self.health_port(name))]
        password = self.base / f"{name}.password"
        password.write_text(PASSWORDS[name])
        return [*whole, "--nats", f"nats://{name}@127.0.0.1:{self.nats_port}", "--nats-password-file", str(password)]

    def complaints(self) -> list[str]:
        """What NATS refused, by the services' logs."""
        lines = [line for name in self.running if name != "nats" for line in self.log(name).read_text().splitlines()]
        words = [orjson.loads(line) for line in lines]
        return [
            str(said) for said in words if said["event"] in {"NATS complains", "no event stream: events are live only"}
        ]


@pytest_asyncio.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Local]:
    monkeypatch.setattr(demo.driver, "Driver", Guarded)
    for service in SERVICES:
        monkeypatch.setenv(f"PASSWORD_{service.upper()}", PASSWORDS[service])
    async with local() as machine:
        yield machine


async def test_nothing_is_refused(machine: Local) -> None:
    """Provision, publish, heal, unpublish, close, delete: all that services ask, answer, say and hear."""
    driver = machine.driver
    assert isinstance(driver, Guarded)
    await machine.csi.create("v1", size=GIB)
    target = machine.target("a", "v1")
    await machine.csi.publish("v1", target)
    name = machine.name(target)
    await machine.replaced(name, machine.kill_client(name))
    await machine.csi.unpublish("v1", target)
    await until(lambda: not driver.clients(name))
    await machine.csi.delete("v1")

    said = await past(driver)
    assert driver.complaints() == []
    assert {"controller", "node", "mountpod"} <= {event["service"] for event in said}
    assert {"VolumeDeleted", "TargetBound", "ClientExited"} <= {event["kind"] for event in said}


async def past(driver: Driver) -> list[dict[str, str]]:
    """What the tap replays."""
    tap = await asyncio.create_subprocess_exec(
        program("juicefs-csi-tap"),
        *("--since", "5m", "--no-follow", "--json"),
        env={"JUICEFS_CSI_NATS": f"nats://tap:{PASSWORDS['tap']}@127.0.0.1:{driver.nats_port}"},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(tap.communicate(), 20)
    return [orjson.loads(line) for line in printed.splitlines()]
