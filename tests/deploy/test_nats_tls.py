"""The component nats-tls on a real nats-server, with a certificate as docs/OPERATIONS.md makes it."""

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.nats_auth import passwords
from tests.nats_server import NatsServer, nats_server
from tests.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORDS = passwords()
MAKE = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=nats -addext subjectAltName=IP:127.0.0.1"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tls.crt and tls.key of the server; the certificate is its own authority."""
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run([*MAKE.split(), "-keyout", "tls.key", "-out", "tls.crt"], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def secured(certificate: Path) -> Iterator[NatsServer]:
    """As the component configures it, but for the place of the certificate."""
    shutil.copy(DEPLOY / "base" / "nats.conf", certificate)
    tls = (DEPLOY / "components" / "nats-tls" / "tls.conf").read_text()
    (certificate / "tls.conf").write_text(re.sub("/etc/nats-tls", str(certificate), tls))
    with socket.create_server(("127.0.0.1", 0)) as free:
        monitor = str(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        for service, password in PASSWORDS.items():
            patch.setenv(f"PASSWORD_{service.upper()}", password)
        with nats_server("-c", str(certificate / "nats.conf"), "-m", monitor) as server:
            yield server


async def cause(server: NatsServer, scheme: str, query: str = "") -> str:
    """Why the bus does not connect; empty when it does."""
    bus = Bus(url=f"{scheme}://node:{PASSWORDS['node']}@127.0.0.1:{server.port}{query}", service="node", node="n1")
    task = asyncio.create_task(bus.run())
    with suppress(TimeoutError):
        await until(lambda: bus.is_connected, within=3)
    found = "" if bus.is_connected else bus._connection.cause
    task.cancel()
    await asyncio.wait({task})
    return found


async def test_the_authority_is_trusted(secured: NatsServer, certificate: Path) -> None:
    assert not await cause(secured, "tls", f"?ca={certificate / 'tls.crt'}")


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_another_authority_is_not(secured: NatsServer, scheme: str) -> None:
    """Nor is TLS left out by who does not ask for it."""
    assert "certificate verify failed" in await cause(secured, scheme)


async def test_an_authority_that_is_not_there_is_named(secured: NatsServer) -> None:
    assert "No such file" in await cause(secured, "tls", "?ca=/nonexistent")
