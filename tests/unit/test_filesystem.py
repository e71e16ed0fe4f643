"""What a user's Secret says, and what of it may be seen."""

import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.filesystem import Filesystem, credentials_digest

MARK = "s3cr3t-mark"
HOSTILE = ["..", "a\0b", "a\nb", "\"'", "$(reboot)", "`reboot`", "x" * 5000, ";|&", "--force"]
KEYS = ["name", "metaurl", "storage", "bucket", "access-key", "secret-key", "trash-days", "format-options", "envs"]


def parse(**secrets: str) -> Filesystem:
    given = {key.replace("_", "-"): value for key, value in secrets.items()}
    return Filesystem.parse({"name": "demo", "metaurl": "redis://host/1"} | given)


def refused(secrets: Mapping[str, str]) -> str:
    """The words of the refusal; empty if there was none."""
    try:
        Filesystem.parse(secrets)
    except InvalidRequest as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("metaurl", "address", "password"),
    [
        ("redis://host/1", "redis://host/1", ""),
        ("host:6379/1", "redis://host:6379/1", ""),
        (f"redis://:{MARK}@host/1", "redis://:@host/1", MARK),
        (f":{MARK}@host/1", "redis://:@host/1", MARK),
        (f"rediss://user:{MARK}@host/1?x=a@b", "rediss://user:@host/1?x=a@b", MARK),
        (f"redis://:{MARK}@master,a,b:26379/1", "redis://:@master,a,b:26379/1", MARK),
        ("redis://:p%40ss%2Fw@host/1", "redis://:@host/1", "p@ss/w"),
        ("redis://:p@ss@host/1", "redis://:@host/1", "p@ss"),
        (f"unix://user:{MARK}@/run/a@b.sock?db=1", "unix://user:@/run/a@b.sock?db=1", MARK),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock", ""),
        (f"mysql://user:{MARK}@(host:3306)/db", "mysql://user:@(host:3306)/db", MARK),
        ("mysql://user:p@s/s%41@(host:3306)/db", "mysql://user:@(host:3306)/db", "p@s/s%41"),
        ("mysql://user:p%40ss@(host:3306)/db", "mysql://user:@(host:3306)/db", "p@ss"),
        (f"postgres://me@corp:{MARK}@host/db", "postgres://me%40corp:@host/db", MARK),
        ("postgres://user@host/db", "postgres://user@host/db", ""),
        ("sqlite3:///data/a:b@c.db", "sqlite3:///data/a:b@c.db", ""),
        ("tikv://a:2379,b:2379/demo", "tikv://a:2379,b:2379/demo", ""),
    ],
)
def test_the_password_leaves_the_address(metaurl: str, address: str, password: str) -> None:
    """The client takes the password from META_PASSWORD, so the address may stand in an argv."""
    fs = parse(metaurl=metaurl)

    assert (fs.address, fs.password.reveal()) == (address, password)


@given(st.text("ab%@:/?#41", min_size=1), st.sampled_from(["redis", "mysql", "postgres"]))
def test_an_encoded_password_is_read_as_it_was_meant(password: str, scheme: str) -> None:
    """Whatever a password holds: encoded into a URL, the client gets it back and the address is without it."""
    encoded = "".join(f"%{byte:02X}" for byte in password.encode())
    host = "(host:1)" if scheme == "mysql" else "host"

    fs = parse(metaurl=f"{scheme}://user:{encoded}@{host}/1")

    assert fs.password.reveal() == password
    assert fs.address == f"{scheme}://user:@{host}/1"


def test_secrets_go_by_environment() -> None:
    """Nothing that opens a door is in the address or the options; the last of a name wins."""
    fs = parse(
        metaurl="redis://:pw@host/1",
        access_key="ak",
        secret_key="old",
        format_options="secret-key=sk,session-token=st,hash-prefix",
        envs='{"REDIS_PASSWORD": "wrong", "TZ": "UTC"}',
    )

    assert {name: value.reveal() for name, value in fs.environment.items()} == {
        "META_PASSWORD": "pw",
        "ACCESS_KEY": "ak",
        "SECRET_KEY": "sk",
        "SESSION_TOKEN": "st",
        "TZ": "UTC",
    }
    assert fs.format_options == (("hash-prefix", ""),)


def test_format_options_come_last() -> None:
    """Behaviour.md 2: `format-options` win over the dedicated keys."""
    fs = parse(trash_days="1", block_size="4M", format_options=" trash-days=7 ,, compress=lz4")

    assert fs.format_options == (("block-size", "4M"), ("trash-days", "1"), ("trash-days", "7"), ("compress", "lz4"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "Demo"),
        ("name", "-demo"),
        ("name", "a"),
        ("metaurl", ""),
        ("metaurl", "mysql://me@corp:pw@(host)/db"),
        ("metaurl", "oracle://me:pw@host/db"),
        ("bucket", "redis://user:pw@host/1"),
        ("format-options", "trash-days="),
        ("format-options", "=7"),
        ("format-options", "force"),
        ("format-options", "session-token"),
        ("format-options", "--force=1"),
        ("format-options", "a b=c"),
        ("envs", "[1]"),
        ("envs", "{"),
        ("envs", "a: [1"),
        ("envs", '{"A": {"b": "c"}}'),
        ("envs", '{"LD_PRELOAD": "x"}'),
        ("envs", '{"PATH": "x"}'),
        ("envs", '{"JFS_SUPER_COMM": "x"}'),
        ("envs", '{"A=B": "x"}'),
        ("envs", '{"_JFS_META_SID": "x"}'),
        ("envs", '{"A": "x\\u0000"}'),
        ("envs", '{"A": "\\ud800"}'),
        ("envs", "[" * 50_000),
        ("encrypt_rsa_key", "pem"),
        ("configs", "{}"),
    ],
)
def test_what_can_not_be_used_is_refused_by_its_key(key: str, value: str) -> None:
    """INVALID_ARGUMENT names the key."""
    with pytest.raises(InvalidRequest, match=f"secret key {key}"):
        Filesystem.parse({"name": "demo", "metaurl": "redis://host", key: value})


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_refusal_never_shows_the_value(key: str, hostile: str) -> None:
    """Bad input is refused or used literally; what was written is never repeated."""
    refusal = refused({"name": "demo", "metaurl": "redis://host", key: f"{MARK}{hostile}"})

    assert MARK not in refusal
    assert not refusal or key in refusal


def test_a_password_need_not_be_text() -> None:
    """Any byte can be written into a URL."""
    fs = parse(metaurl="redis://:%ff@host")

    assert os.fsencode(fs.password.reveal()) == b"\xff"
    assert any(mark.reveal() == "%FF" for mark in fs.marks)


@pytest.mark.parametrize("secrets", [{"name": 1, "metaurl": "x"}, {"name": "demo", "metaurl": b"x"}, {1: "x"}])
def test_what_is_not_text_is_refused(secrets: Any) -> None:
    """The wire's decoder is lenient."""
    with pytest.raises(InvalidRequest, match="text"):
        Filesystem.parse(secrets)


@pytest.mark.parametrize("key", ["name", "metaurl"])
def test_a_missing_key_is_named(key: str) -> None:
    """Both are required."""
    secrets = {"name": "demo", "metaurl": "redis://host"}
    del secrets[key]

    with pytest.raises(InvalidRequest, match=key):
        Filesystem.parse(secrets)


def test_the_enterprise_edition_is_refused_by_its_key() -> None:
    """A token without a metaurl is another product's Secret."""
    with pytest.raises(InvalidRequest, match="token"):
        Filesystem.parse({"name": "demo", "token": MARK})


def test_a_password_in_the_environment_needs_a_url_without_one() -> None:
    """Two passwords contradict each other; one is as good as the other."""
    envs = '{"META_PASSWORD": "pw"}'

    assert parse(metaurl="redis://host", envs=envs).environment["META_PASSWORD"].reveal() == "pw"
    with pytest.raises(InvalidRequest, match="META_PASSWORD"):
        parse(metaurl="redis://:pw@host", envs=envs)


@pytest.mark.parametrize(
    "envs",
    [
        '{"A": 22, "B": true, "C": "x y", "D": 0.10}',
        "A: 22\nB: true\nC: x y\nD: 0.10\n",
        '{\t"A": 22, "B": true, "C": "x y", "D": 0.10}',
    ],
)
def test_envs_are_taken_as_written(envs: str) -> None:
    """JSON or YAML; a number is the text that was written."""
    values = {name: value.reveal() for name, value in parse(envs=envs).envs}

    assert values == {"A": "22", "B": "true", "C": "x y", "D": "0.10"}


def test_a_newline_at_the_end_is_no_part_of_a_value() -> None:
    """`echo secret | base64` is how many Secrets are made."""
    assert parse(metaurl="redis://host/1\n", secret_key="sk\n").secret_key.reveal() == "sk"


def test_nothing_secret_is_printed() -> None:
    """Logs and tracebacks show a file system without what opens it."""
    fs = parse(
        metaurl=f"redis://:{MARK}@host", access_key=f"{MARK}1", secret_key=f"{MARK}2", envs=f'{{"A": "{MARK}3"}}'
    )

    assert MARK not in repr(fs)
    assert MARK not in str(fs.environment)


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)), st.dictionaries(st.text(max_size=5), st.text(max_size=5))
)
def test_digests_are_equal_if_and_only_if_the_secrets_are(one: Mapping[str, str], other: Mapping[str, str]) -> None:
    """Promise 20: credentials are told apart by every key and value."""
    assert (credentials_digest(one) == credentials_digest(other)) == (one == other)
    assert credentials_digest(one) == credentials_digest(dict(reversed(list(one.items()))))


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.lists(st.text()))))
def test_any_map_of_envs_is_parsed_or_refused(envs: dict[str, object]) -> None:
    """Promise 24: no Secret is a crash."""
    refusal = refused({"name": "demo", "metaurl": "redis://host", "envs": json.dumps(envs)})

    assert not refusal or "envs" in refusal
