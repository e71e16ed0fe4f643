"""What mountpod keeps beside a client: credentials, state, log, sockets."""

import os
import time
from pathlib import Path

import orjson
import pytest

from services.mountpod import launch
from services.mountpod.client_log import ClientLog
from services.mountpod.credentials import Credentials
from shared.domain import Secret, Subpath
from shared.errors import InvalidRequest, NotReady
from shared.filesystem import credentials_digest
from shared.layout import Client, Layout
from shared.settings import ClientSettings

SECRETS = {"name": "demo", "metaurl": "redis://:pw-marker@host/1"}
DIGEST = credentials_digest(SECRETS)
SETTINGS = ClientSettings(volume_id="v", credentials=DIGEST, subdir=Subpath(), options=())


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(mount_root=tmp_path / "m", run=tmp_path / "r")
    found.client(SETTINGS.mount_name).directory.mkdir(parents=True)
    spool = found.credentials(DIGEST)
    spool.parent.mkdir()
    spool.write_bytes(orjson.dumps(SECRETS))
    return found


@pytest.fixture
def paths(layout: Layout) -> Client:
    return layout.client(SETTINGS.mount_name)


def test_credentials_are_kept_beside_the_client(layout: Layout, paths: Client) -> None:
    """The spool is swept, the client's own copy stays, readable by nobody else."""
    Credentials(layout).keep(paths, DIGEST)
    layout.credentials(DIGEST).unlink()
    assert Credentials(layout).keep(paths, DIGEST).password == Secret("pw-marker")
    assert paths.credentials.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": "demo"', b'{"name": "other"}'])
def test_credentials_that_are_not_what_they_are_called_are_not_used(layout: Layout, content: bytes) -> None:
    """Cut short, no map, or another's: to be published again."""
    layout.credentials(DIGEST).write_bytes(content)
    with pytest.raises(NotReady, match="publish again"):
        Credentials(layout).spooled(DIGEST)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 65])
def test_a_digest_names_no_other_file(layout: Layout, digest: str) -> None:
    """What comes on the bus becomes a path only when it is 64 hex characters."""
    with pytest.raises(InvalidRequest):
        Credentials(layout).spooled(digest)


def test_the_spool_is_swept(layout: Layout) -> None:
    """Ten minutes after their publish, credentials that no client needs are gone."""
    old = time.time() - 601
    os.utime(layout.credentials(DIGEST), (old, old))
    Credentials(layout).sweep({DIGEST})
    assert layout.credentials(DIGEST).exists()
    Credentials(layout).sweep(set())
    assert not layout.credentials(DIGEST).exists()


def test_state_is_read_back(paths: Client) -> None:
    launch.write_state(paths, SETTINGS, is_mounted=True)
    assert launch.read_state(paths) == launch.State(settings=SETTINGS, is_mounted=True)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"settings": {"volume_id": 1}, "mounted": true}'])
def test_state_that_is_not_understood_is_no_client(paths: Client, content: bytes) -> None:
    """Promise 24: one malformed object stops nothing."""
    paths.state.write_bytes(content)
    assert launch.read_state(paths) is None


def test_state_of_another_name_is_no_client(paths: Client) -> None:
    """A directory that was copied or renamed is not adopted under its new name."""
    launch.write_state(
        paths, ClientSettings(volume_id="w", credentials=DIGEST, subdir=Subpath(), options=()), is_mounted=True
    )
    assert launch.read_state(paths) is None


def test_only_own_files_are_removed(paths: Client) -> None:
    """Promise 4: what nobody named stays, and keeps the directory."""
    foreign = paths.directory / "foreign"
    for path in (paths.credentials, paths.alive, paths.log, paths.state, paths.comm_socket, foreign):
        path.touch()
    launch.remove_files(paths)
    assert sorted(paths.directory.iterdir()) == [paths.comm_socket, foreign]


def test_the_last_words_are_those_of_this_start(paths: Client) -> None:
    """What an earlier start complained of is not this one's reason; secrets are masked."""
    log = ClientLog(paths.log)
    log.mask([Secret("pw-marker")])
    paths.log.write_text("<FATAL>: Access denied for earlier\n")
    log.begin()
    assert log.last_line() == ""
    with paths.log.open("a") as file:
        file.write("<FATAL>: dial tcp pw-marker: connection refused\n")
    assert (log.last_words().reason, log.last_line()) == (
        "META_UNREACHABLE",
        "<FATAL>: dial tcp ***: connection refused",
    )


def test_what_a_client_tells_is_no_complaint(paths: Client) -> None:
    """A slow start that complains of nothing is not given up early."""
    paths.log.write_text("2026/11/23 20:33:43.780053 juicefs[1] <INFO>: Meta address: redis://host/1 [a@b.go:1]\n")
    assert ClientLog(paths.log).complaint() is None


def test_a_long_log_is_trimmed_to_its_last_lines(paths: Client) -> None:
    """Nothing grows without bound; the client's next line lands behind what is kept."""
    log = ClientLog(paths.log)
    paths.log.write_text("".join(f"line {number}\n" for number in range(200_000)))
    log.trim()
    assert paths.log.stat().st_size <= 4096
    assert paths.log.read_text().startswith("line ")
    assert log.last_line() == "line 199999"
