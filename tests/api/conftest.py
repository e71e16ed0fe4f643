"""An API server that the tests here share."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.kubernetes import Kubernetes
from tests.api_server import ApiServer, api_server


@pytest.fixture(scope="session")
def server() -> Iterator[ApiServer]:
    """A test that stops it starts it again."""
    with api_server() as server:
        yield server


@pytest.fixture
async def api(server: ApiServer) -> AsyncIterator[Kubernetes]:
    """As an administrator."""
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig)) as api:
        yield api
