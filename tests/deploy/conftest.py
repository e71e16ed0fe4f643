"""Every kustomization that is shipped, as tests see it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server import api_server
from tests.deploy.kubectl import Kubectl
from tests.deploy.rendering import COMPONENTS, OVERLAYS, Object, binary, kustomization, rendered


@pytest.fixture(scope="session", params=[*OVERLAYS, *COMPONENTS])
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an overlay, or of the default overlay with one more component."""
    if binary("kubectl") is None:
        pytest.skip("kubectl renders: it is neither on PATH nor built for the one-node cluster")
    return kustomization(request.param, tmp_path_factory.mktemp("deploy"))


@pytest.fixture(scope="session")
def objects(shipped: Path) -> tuple[Object, ...]:
    return rendered(shipped)


@pytest.fixture(scope="session")
def kubectl() -> Iterator[Kubectl]:
    """Of an API server that is empty."""
    with api_server() as server:
        yield Kubectl(server)
