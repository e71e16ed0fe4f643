"""What a client that makes way tells of itself."""

from pathlib import Path

import orjson
import pytest

from services.node.session import Session, _read, read_session
from shared.errors import NotReady
from shared.mounttable import MountEntry

CONFIG = {"Meta": {"Sid": 42, "Strict": True}, "StatePath": "/tmp/state7.json", "Pid": 7}


def entry(path: Path) -> MountEntry:
    return MountEntry(
        mount_id=1,
        parent_id=0,
        device="0:50",
        root="/",
        mount_point=str(path),
        options=frozenset(),
        fs_type="fuse.juicefs",
        source="JuiceFS:demo",
    )


async def test_a_tenants_file_is_no_clients(tmp_path: Path) -> None:
    """With prefix-internal the client's has another name, and a tenant may make one of the usual one."""
    (tmp_path / ".config").write_bytes(orjson.dumps(CONFIG))
    with pytest.raises(NotReady, match="does not tell its session"):
        await read_session(entry(tmp_path))


@pytest.mark.parametrize("name", [".config", ".jfs.config"])
async def test_a_client_tells_its_session(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """behaviour.md 3.3: with prefix-internal its file has another name."""
    monkeypatch.setattr("services.node.session._INTERNAL", 0)  # no other file has such an inode number
    (tmp_path / name).write_bytes(orjson.dumps(CONFIG))
    assert await read_session(entry(tmp_path)) == Session(number=42, state="/tmp/state7.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"Meta": {}}', '{"Meta": {"Sid": null}, "StatePath": "x"}'])
async def test_what_is_no_session_is_said(tmp_path: Path, content: str) -> None:
    """An older client, or something else: it is not replaced in order."""
    (tmp_path / ".config").write_text(content)
    with pytest.raises(NotReady, match="does not tell its session"):
        await read_session(entry(tmp_path))


async def test_no_file_is_said(tmp_path: Path) -> None:
    """The same."""
    with pytest.raises(NotReady):
        await read_session(entry(tmp_path))
    with pytest.raises(FileNotFoundError):
        _read(str(tmp_path))


def test_the_next_client_reads_two_lines(tmp_path: Path) -> None:
    """Whole or not at all, and for root only."""
    path = tmp_path / "resume"
    for number in (1, 42):
        Session(number=number, state="/tmp/a b.json").write(path)
    assert path.read_text() == "42\n/tmp/a b.json\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_that_is_two_lines_is_none() -> None:
    """It would say something else to the next client."""
    with pytest.raises(ValueError, match="line"):
        Session.parse(orjson.dumps(CONFIG | {"StatePath": "/tmp/a\nb"}))
