"""What the node remembers of the clients that mountpod named."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from services.node.answers import Answers
from services.node.clients import Clients, Wanted
from shared.api.juicefs.v1 import (
    EnsureReply,
    EnsureRequest,
    Event,
    MountClosed,
    MountSuperseded,
    ServiceStarted,
    TargetBound,
)
from shared.layout import Layout
from shared.mounttable import MountTable
from tests.fakes.bus import MemoryBus

NAME = "pvc-1-abcdef"
MOUNTED = object()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(mount_root=tmp_path / "m", run=tmp_path / "r")
    found.client(NAME).directory.mkdir(parents=True)
    return found


class Mounts:
    """One client is mounted, and answers."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def mounted(self, name: str) -> object:
        return MOUNTED if name == self._name else None

    def expect(self, _: str) -> AbstractContextManager[None]:
        return nullcontext()

    async def is_dead(self, _: object) -> bool:
        return False


def clients(layout: Layout, mounts: Mounts | None = None) -> Clients:
    """That remembers one for the inputs `i`."""
    found = Clients(
        layout=layout,
        table=MountTable(),
        mounts=mounts or Mounts(),  # type: ignore[arg-type]
        probes=mounts or Mounts(),  # type: ignore[arg-type]
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


async def test_who_waits_goes_on_with_the_client_of_now(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration changes while a publish waits: mountpod starts another one, and the first never comes."""
    monkeypatch.setattr("services.node.clients.ASK_AGAIN", 0.01)
    answers = iter(["pvc-1-first", NAME])

    async def ensure(_: EnsureRequest) -> EnsureReply:
        return EnsureReply(mount=next(answers))

    found = clients(layout, mounts=Mounts(NAME))
    found._bus.serve("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest, ensure)
    wanted = Wanted(volume_id="v", context={}, mount_options=(), secrets={})
    async with found.find(wanted, timeout=5) as entry:
        assert entry == MOUNTED
    assert found._known[wanted.inputs] == NAME


async def test_after_a_silence_mountpod_is_asked_again(layout: Layout) -> None:
    """What it said while NATS was away was not heard (promise 19)."""
    asked: list[str] = []

    async def ensure(request: EnsureRequest) -> EnsureReply:
        asked.append(request.volume_id)
        return EnsureReply(mount=NAME)

    found = clients(layout, mounts=Mounts(NAME))
    found._bus.serve("juicefs.rpc.mountpod.n1.Ensure", EnsureRequest, ensure)
    for silences in (0, 0, 1, 1):
        found._bus.connections = silences
        async with found.find(Wanted(volume_id="v", context={}, mount_options=(), secrets={}), timeout=5):
            pass
    assert asked == ["v", "v"]


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
