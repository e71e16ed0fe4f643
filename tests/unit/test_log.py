import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared import log
from shared.domain import Secret
from shared.errors import NotReady


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The lines that were logged as JSON."""
    before, root, stderr = structlog.get_config(), logging.getLogger(), io.StringIO()
    handlers, root.handlers = root.handlers, []
    monkeypatch.setattr(sys, "stderr", stderr)
    log.configure(style="json", level="info")
    yield lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]
    structlog.configure(**before)
    root.handlers = handlers


def test_a_line_is_an_object(written: Any) -> None:
    """With time, level, event and facts."""
    structlog.get_logger().info("target bound", target="/t")

    (line,) = written()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "target bound", "level": "info", "target": "/t"}


def test_the_level_counts(written: Any) -> None:
    """Below it nothing is written."""
    structlog.get_logger().debug("call answered")

    assert written() == []


async def test_lines_belong_to_their_call(written: Any) -> None:
    """Calls that run side by side keep their ids, also in tasks they start."""

    async def call(number: int) -> None:
        with log.bound(request=f"r{number}", rpc="Probe"):
            await asyncio.sleep(0)
            await asyncio.create_task(work(number))

    async def work(number: int) -> None:
        structlog.get_logger().info("worked", number=number, said=log.request_id.get())

    await asyncio.gather(*(call(number) for number in range(5)))

    assert all(line["request_id"] == line["said"] == f"r{line['number']}" for line in written())
    assert log.request_id.get() == ""


def test_an_exception_is_told_by_its_places(written: Any) -> None:
    """Its text, which may quote a secret, is not; nor are those of its causes. A word of ours is."""

    def fail() -> None:
        try:
            int("hunter2")
        except ValueError as error:
            raise ExceptionGroup("hunter2", [NotReady("NATS is away"), KeyError("hunter2")]) from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    structlog.get_logger().error("failed", exc_info=caught.value)

    (line,) = written()
    assert "hunter2" not in str(line)
    assert {"NATS is away", "KeyError"} <= set(line["places"])
    assert any("unit/test_log.py" in place and place.endswith(" fail") for place in line["places"])


def test_libraries_log_the_same_way(written: Any) -> None:
    """Warnings of others come as lines too, without the texts of their exceptions."""
    try:
        int("hunter2")
    except ValueError:
        logging.getLogger("nats").exception("encountered error")

    (line,) = written()
    assert (line["event"], line["level"], line["places"][-1]) == ("encountered error", "error", "ValueError")
    assert "hunter2" not in str(line)


def test_an_object_is_named_not_printed(written: Any) -> None:
    """Messages print all they hold."""
    structlog.get_logger().info("x", secret=Secret("hunter2"), thing=object())

    (line,) = written()
    assert (line["secret"], line["thing"]) == ("<Secret>", "<object>")


def test_a_line_never_fails(written: Any) -> None:
    """Whatever bytes a client printed."""
    structlog.get_logger().info("x", last_line="caf\udce9", number=1 << 70)

    (line,) = written()
    assert (line["last_line"], line["number"]) == ("caf\udce9", 1 << 70)
