"""What the node remembers of the clients that mountpod named."""

from pathlib import Path

import pytest

from services.node.answers import Answers
from services.node.clients import Clients
from shared.api.juicefs.v1 import Event, MountClosed, MountSuperseded, ServiceStarted, TargetBound
from shared.layout import Layout
from shared.mounttable import MountTable
from tests.fakes.bus import MemoryBus

NAME = "pvc-1-abcdef"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(mount_root=tmp_path / "m", run=tmp_path / "r")
    found.client(NAME).directory.mkdir(parents=True)
    return found


def clients(layout: Layout) -> Clients:
    """That remembers one for the inputs `i`; nothing here looks at mounts."""
    nothing = object()
    found = Clients(
        layout=layout,
        table=MountTable(),
        mounts=nothing,  # type: ignore[arg-type]
        probes=nothing,  # type: ignore[arg-type]
        bus=MemoryBus(),
        node="n1",
    )
    found._known["i"] = NAME
    return found


@pytest.mark.parametrize(
    "event",
    [
        Event(mount=NAME, mount_superseded=MountSuperseded()),
        Event(mount=NAME, mount_closed=MountClosed()),
        Event(service_started=ServiceStarted()),
    ],
)
def test_mountpod_is_asked_again(layout: Layout, event: Event) -> None:
    """Promise 19: for what it says is over, and after a start of its own, which may have brought a configuration."""
    found = clients(layout)
    found.hear(event)
    assert not found._known


@pytest.mark.parametrize(
    "event",
    [Event(mount="pvc-2-abcdef", mount_superseded=MountSuperseded()), Event(mount=NAME, target_bound=TargetBound())],
)
def test_what_runs_is_remembered(layout: Layout, event: Event) -> None:
    """A warm publish asks nobody (promise 8)."""
    found = clients(layout)
    found.hear(event)
    assert found._known == {"i": NAME}


def test_answers_outlive_the_node_service(layout: Layout) -> None:
    """Promise 8: with mountpod away a publish finds the client that ran before; not one that has ended."""
    answers = Answers(layout)
    answers.note("a", "pvc-2-abcdef")
    answers.note("a", NAME)
    answers.note("b", NAME)
    answers.note("c", "gone-abcdef")
    again = Answers(layout)
    assert [again.name(inputs) for inputs in "abcd"] == [NAME, NAME, "", ""]
    again.forget(NAME)
    assert (again.name("a"), list(layout.answers.iterdir())) == ("", [])


def test_an_answer_that_is_no_note_is_left_alone(layout: Layout) -> None:
    """What somebody put there does not keep the service from starting."""
    Answers(layout)
    (layout.answers / "file").touch()
    assert Answers(layout).name("file") == ""
