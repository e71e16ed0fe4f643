import argparse
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared import events, tap
from shared.api.juicefs.v1 import ClientExited, ClientReady, Event, MountFailed, MountIdle, TargetBound, VolumeCreated
from shared.eventline import Filter, as_json, as_line

NOW = datetime(2026, 11, 23, 10, 0, 0, 123000).astimezone()


def said(what: Any, *, node: str = "n1", volume_id: str = "v1", mount: str = "", at: datetime = NOW) -> Event:
    found = events.event(what, volume_id=volume_id, mount=mount, request_id="r1")
    found.service, found.node, found.time_ms = "node", node, int(at.timestamp() * 1000)
    return found


def line(event: Event, *, is_coloured: bool = False) -> str:
    return as_line(event, is_coloured=is_coloured, today=NOW)


def test_every_kind_has_its_field() -> None:
    """A kind is the name of a message of the oneof, and its subject says so."""
    assert set(events.KINDS) >= {"ServiceStarted", "TargetBound", "MountIdle", "ClientGivenUp"}
    assert events.subject(said(MountIdle())) == "juicefs.event.node.n1.MountIdle"
    assert events.subject(said(MountIdle(), node="")) == "juicefs.event.node._.MountIdle"


def test_an_event_survives_the_wire() -> None:
    """Also one that has no fields."""
    assert events.kind(Event.parse(bytes(said(MountIdle())))) == "MountIdle"
    assert events.facts(Event.parse(bytes(said(TargetBound(target="/t"))))) == {
        "target": "/t",
        "read_only": False,
        "pod_namespace": "",
        "pod_name": "",
    }


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (said(MountIdle()), "10:00:00.123  n1            v1            MountIdle"),
        (said(MountIdle(), node="", volume_id=""), "10:00:00.123  node          -             MountIdle"),
        (said(MountIdle(), at=NOW - timedelta(days=1)), "11-22 10:00:00.123  n1            v1            MountIdle"),
        (said(MountIdle(), volume_id="pvc-01234567-89ab"), "10:00:00.123  n1            pvc-01234567  MountIdle"),
        (said(MountIdle(), volume_id="a-long-volume-id"), "10:00:00.123  n1            a-long-volu…  MountIdle"),
        (said(MountIdle(), volume_id="", mount="v1-abc"), "10:00:00.123  n1            v1-abc        MountIdle"),
    ],
)
def test_a_line_tells_when_where_and_what(event: Event, text: str) -> None:
    """In columns; the date only when it isn't today's."""
    assert line(event) == text


@pytest.mark.parametrize(
    ("what", "facts"),
    [
        (TargetBound(target="/t", read_only=True), "target=/t read_only"),
        (VolumeCreated(capacity_bytes=3 << 30), "capacity=3GiB"),
        (VolumeCreated(capacity_bytes=5), "capacity_bytes=5"),
        (ClientReady(after_ms=12), "after=12ms"),
        (ClientExited(exit_code=0, last_line="bye bye"), 'exit_code=0 last_line="bye bye"'),
        (MountFailed(reason="META_AUTH"), "reason=META_AUTH"),
    ],
)
def test_facts_are_short(what: Any, facts: str) -> None:
    """Units as people write them; nothing of what is empty."""
    assert line(said(what)).split(maxsplit=4)[4] == facts


def test_an_event_cannot_play_with_the_terminal() -> None:
    """A client's last words may hold anything."""
    evil = said(ClientExited(last_line="\x1b[2J\r\nfake"), node="\x1b[31m", volume_id="\x07")

    assert line(evil).isprintable()


def test_colours_tell_bad_from_good() -> None:
    """Failures are red."""
    assert "\x1b[31mMountFailed" in line(said(MountFailed()), is_coloured=True)


def test_json_is_stable() -> None:
    """Time in UTC with milliseconds, and the same keys for every kind."""
    found = json.loads(as_json(said(MountIdle(), at=datetime(2026, 11, 23, 10, 0, 0, 123000, tzinfo=UTC))))

    assert list(found) == ["time", "service", "node", "volume_id", "mount", "request_id", "kind", "facts"]
    assert found["time"] == "2026-11-23T10:00:00.123Z"


@pytest.mark.parametrize(
    ("chosen", "shows"),
    [
        (Filter(), True),
        (Filter(nodes=frozenset({"n1", "n2"})), True),
        (Filter(nodes=frozenset({"n2"})), False),
        (Filter(kinds=frozenset({"MountIdle"})), True),
        (Filter(kinds=frozenset({"MountClosed"})), False),
        (Filter(volumes=("pvc-1",)), True),
        (Filter(volumes=("other", "abcdef")), True),
        (Filter(volumes=("pvc-2",)), False),
    ],
)
def test_filters(chosen: Filter, shows: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Each kind of filter must match; within one, any."""
    assert chosen.shows(said(MountIdle(), volume_id="pvc-1234", mount="pvc-1234-abcdef")) is shows


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("1h30m", 5400), ("2d", 172800), ("45s", 45)])
def test_since_a_while_ago(text: str, seconds: int) -> None:
    """As people write durations."""
    assert abs((datetime.now(UTC) - tap.moment(text)).total_seconds() - seconds) < 5


def test_since_a_moment() -> None:
    """Local time, unless it says otherwise."""
    assert tap.moment("2026-11-23T10:00") == datetime(2026, 11, 23, 10, 0).astimezone()
    assert tap.moment("2026-11-23T10:00+00:00") == datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "10", "ten", "10m5", "-5m"])
def test_since_nonsense(text: str) -> None:
    """Said with examples."""
    with pytest.raises(argparse.ArgumentTypeError, match="1h30m"):
        tap.moment(text)
