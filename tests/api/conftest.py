"""An API server that the tests here share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from shared.kubernetes import SERVICE_ACCOUNTS, Kubernetes
from tests.api_server import ApiServer, api_server
from tests.waiting import until


@pytest.fixture(scope="session")
def server() -> Iterator[ApiServer]:
    """A test that stops it starts it again."""
    with api_server() as server:
        yield server


@pytest.fixture(autouse=True)
async def _nothing_left(server: ApiServer) -> AsyncIterator[None]:
    """No server that is away, and no connection: one that was given up ends its TLS in an orderly way, in the loop."""
    server.start()
    yield
    connections = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    await until(lambda: len(connections) == 1)  # the loop's own


@pytest.fixture
async def api(server: ApiServer) -> AsyncIterator[Kubernetes]:
    """As an administrator."""
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig)) as api:
        yield api


@pytest.fixture
def away(server: ApiServer) -> Iterator[None]:
    """While the API server is away."""
    with server.killed():
        yield


@pytest.fixture
async def account(server: ApiServer, api: Kubernetes, tmp_path: Path) -> AsyncIterator[Path]:
    """As in a pod: a service account without rights; the directory with its files."""
    name = f"t-{token_hex(4)}"
    await api.create(SERVICE_ACCOUNTS, {"metadata": {"name": name}}, namespace="default")
    (tmp_path / "token").write_text(await token_of(api, name) + "\n")
    (tmp_path / "namespace").write_text("default")
    (tmp_path / "ca.crt").write_text(server.ca.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.kubeconfig.SERVICE_ACCOUNT", tmp_path)
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        yield tmp_path


async def token_of(api: Kubernetes, account: str) -> str:
    """As kubelet gets it for a pod."""
    path = f"/api/v1/namespaces/default/serviceaccounts/{account}/token"
    asked = await api._ask("POST", SERVICE_ACCOUNTS, path, body={"spec": {"expirationSeconds": 600}})
    return str(asked["status"]["token"])
