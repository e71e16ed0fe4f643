"""Real things that several tests share."""

from collections.abc import Iterator

import pytest

from tests.nats_server import NatsServer, nats_server


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """A nats-server with JetStream; a test that stops it starts it again."""
    with nats_server() as server:
        yield server
