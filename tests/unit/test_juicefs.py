"""The commands that are run, word by word."""

from pathlib import Path

import pytest

from shared.domain import Secret, Subpath
from shared.errors import NotReady
from shared.filesystem import Filesystem
from shared.juicefs import Command, Juicefs
from shared.settings import parse

MARK = "s3cr3t-mark"
SECRETS = {
    "name": "demo",
    "metaurl": f"redis://:{MARK}-pw@host/1",
    "storage": "s3",
    "bucket": "http://host/b",
    "access-key": f"{MARK}-ak",
    "secret-key": f"{MARK}-sk",
    "trash-days": "0",
    "format-options": f"session-token={MARK}-st,hash-prefix",
    "envs": f'{{"TOKEN": "{MARK}-env"}}',
}
FS = Filesystem.parse(SECRETS)
JUICEFS = Juicefs(binary=Path("/bin/juicefs"), mount_flags=frozenset({"cache-size", "metrics", "subdir", "writeback"}))


def mount(*options: str, **context: str) -> tuple[str, ...]:
    settings = parse(volume_id="v", context=context, mount_options=options, credentials=FS.credentials)
    return JUICEFS.mount(FS, settings, Path("/mnt/v")).argv[1:]


def test_a_file_system_is_formatted_as_the_secret_says() -> None:
    """Every word is an argument of its own, and none of them opens a door."""
    words = "format redis://:@host/1 demo --storage=s3 --bucket=http://host/b --trash-days=0 --hash-prefix"

    assert JUICEFS.format(FS).argv == ("/bin/juicefs", *words.split())


def test_half_of_a_place_for_objects_changes_nothing() -> None:
    """Behaviour.md 2: without storage or bucket the format of an existing file system is left alone."""
    fs = Filesystem.parse({"name": "demo", "metaurl": "redis://host", "bucket": "/data"})

    assert JUICEFS.format(fs).argv[1:] == ("format", "redis://host", "demo", "--no-update", "--bucket=/data")


@pytest.mark.parametrize("storage", ["", "file", "s3"])
def test_without_a_place_for_objects_nothing_is_made(storage: str) -> None:
    """The client would make a file system on its own local disk."""
    fs = Filesystem.parse({"name": "demo", "metaurl": "redis://host", "storage": storage})

    assert JUICEFS.format(fs).argv[1:] == ("config", "redis://host")


def test_a_quota_is_set_in_gib() -> None:
    """The directory is made for everybody, whatever umask the service has."""
    command = JUICEFS.quota_set(FS, Subpath(text="a b/$(x)"), gib=3)

    assert command.argv[1:] == ("quota", "set", "redis://:@host/1", "--path=/a b/$(x)", "--capacity=3", "--create")
    assert command.umask == 0


def test_mount_flags_and_fuse_options_go_their_own_ways() -> None:
    """What `juicefs mount --help` lists is a flag, everything else an option of FUSE."""
    assert mount("writeback", "cache-size=10", "allow_other", "ro", "fsname=x", subPath="a") == (
        "mount",
        "redis://:@host/1",
        "/mnt/v",
        "-o",
        "allow_other,fsname=x,ro",
        "--cache-size=10",
        "--metrics=127.0.0.1:0",
        "--subdir=/a",
        "--writeback",
    )


def test_metrics_can_be_had_where_the_user_wants_them() -> None:
    """Otherwise a free port: clients share a machine."""
    assert "--metrics=0.0.0.0:9567" in mount("metrics=0.0.0.0:9567")
    assert "--metrics=127.0.0.1:0" in mount()


def commands() -> list[Command]:
    settings = parse(volume_id="v", context={}, mount_options=[], credentials=FS.credentials)
    return [
        JUICEFS.format(FS),
        JUICEFS.show(FS),
        JUICEFS.quota_set(FS, Subpath(text="a"), gib=1),
        JUICEFS.quota_get(FS, Subpath(text="a")),
        JUICEFS.mount(FS, settings, Path("/mnt/v")),
        JUICEFS.webdav(FS, address="127.0.0.1:1", user="csi", password=Secret(f"{MARK}-dav")),
    ]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.argv[1])
def test_no_command_shows_a_secret(command: Command) -> None:
    """Promise 22: argv is for everybody to read, and so is what is logged of a command."""
    assert MARK not in " ".join(command.argv)
    assert MARK not in repr(command)
    assert all(
        any(value == mark for mark in command.marks)
        for key, value in command.environment.items()
        if key not in {"WEBDAV_USER", "GOGC", "GOMEMLIMIT", "GOMAXPROCS"}
    )


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.argv[1])
def test_only_what_ends_soon_collects_no_garbage(command: Command) -> None:
    """A client or a gateway lives for long; and nobody's log is masked where it says "off"."""
    is_brief = command.argv[1] not in {"mount", "webdav"}

    assert ("GOGC" in command.environment) == is_brief
    assert "off" not in {mark.reveal() for mark in command.marks}


def test_a_client_inherits_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service was told in its environment is not for the clients of tenants."""
    monkeypatch.setenv("JUICEFS_CSI_NATS_TOKEN", "x")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")

    environment = JUICEFS.show(FS).whole_environment()

    assert environment["HTTPS_PROXY"] == "http://proxy"
    assert environment["META_PASSWORD"] == f"{MARK}-pw"
    assert "JUICEFS_CSI_NATS_TOKEN" not in environment


@pytest.mark.parametrize("name", ["missing", "directory", "no program"])
async def test_what_is_missing_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    """No `juicefs`: the service says so at start."""
    binary = tmp_path / name
    if name == "directory":
        binary.mkdir()
    elif name == "no program":
        binary.write_text("#!/bin/sh\necho hello\n")
        binary.chmod(0o755)

    with pytest.raises(NotReady, match=str(binary)) as refusal:
        await Juicefs.probe(binary)

    assert "\n" not in str(refusal.value)
