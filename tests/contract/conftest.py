"""mountpod's side of the bus, for the suites of the node service."""

import pytest

from services.mountpod.node import NodeService
from tests.fakes.bus import MemoryBus


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def node(bus: MemoryBus) -> NodeService:
    return NodeService(bus=bus, node="n1")
