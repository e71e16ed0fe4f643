"""What holds for every test."""

import asyncio


def pytest_configure() -> None:
    """No loop until a test has one: looptime asks for the current one, which asyncio would make, and nobody close."""
    asyncio.set_event_loop(None)
