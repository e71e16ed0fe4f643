"""Which publishes share a client, and which options reach it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.settings import ClientSettings, is_mount_name, parse, parse_options, shared_context, unique_id


def settings(**changes: object) -> ClientSettings:
    wanted = {"volume_id": "v", "context": {}, "mount_options": [], "credentials": "c"} | changes
    return parse(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"credentials": "other"},
        {"mount_options": ["ro"]},
        {"context": {"subPath": "a"}},
        {"context": {"mountOptions": "cache-size=1"}},
        {"context": {"juicefs/mount-delete-delay": "1m"}},
        {"volume_id": "w"},
    ],
)
def test_other_settings_get_another_client(change: dict[str, object]) -> None:
    """Promise 20: sharing needs equal credentials and options."""
    assert settings(**change).mount_name != settings().mount_name


def test_what_kubelet_says_of_the_pod_changes_nothing() -> None:
    """Two pods share one client."""
    context = {"csi.storage.k8s.io/pod.name": "a", "csi.storage.k8s.io/serviceAccount.tokens": "secret"}
    assert shared_context(context) == {}
    assert settings(context=context) == settings()


def test_the_order_of_options_means_nothing() -> None:
    """Options are a map."""
    assert settings(mount_options=["a=1", "b"]) == settings(mount_options=["b,a=1"])


def test_subdir_and_subpath_are_joined() -> None:
    """behaviour.md 3.3: `subdir=X` and subPath become X/subPath."""
    assert str(settings(context={"subPath": "/p"}, mount_options=["subdir=/x/"]).subdir) == "/x/p"


@pytest.mark.parametrize("option", ["a=b=c", "=x", "-o", "--x", "a b", "a\nb", "$(id)", "background", "update-fstab"])
def test_a_bad_option_is_refused(option: str) -> None:
    """No option can become another argument, or take the client out of our hands."""
    with pytest.raises(InvalidRequest, match="mount option"):
        parse_options([option])


def test_read_only_is_spelled_ro() -> None:
    """behaviour.md 3.3 knows both."""
    assert parse_options(["read-only", " cache-size = 10 "]) == {"ro": "", "cache-size": "10"}


@pytest.mark.parametrize(("text", "seconds"), [("", 0), ("0", 0), ("90s", 90), ("1h30m", 5400), ("1.5m", 90)])
def test_a_delete_delay_is_a_go_duration(text: str, seconds: float) -> None:
    """behaviour.md 3.1."""
    assert settings(context={"juicefs/mount-delete-delay": text}).delete_delay == seconds


@pytest.mark.parametrize(
    "context", [{"juicefs/mount-delete-delay": "soon"}, {"juicefs/clean-cache": "yes"}, {"subPath": "../x"}]
)
def test_a_bad_value_is_refused_by_its_key(context: dict[str, str]) -> None:
    """The message names what to correct."""
    with pytest.raises(InvalidRequest, match=next(iter(context))):
        settings(context=context)


@given(st.text(min_size=1, max_size=128))
def test_every_volume_id_becomes_a_short_file_name(volume_id: str) -> None:
    """A client's directory and socket have bounded, plain names."""
    name = f"{unique_id(volume_id)}-abcdef"
    assert is_mount_name(name)
    assert len(name) <= 55
    assert is_mount_name(name, unique=unique_id(volume_id))


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_two_volumes_never_have_one_name(one: str, two: str) -> None:
    """Promise 20, as a property over pairs."""
    assert (unique_id(one) == unique_id(two)) == (one == two)


@pytest.mark.parametrize("name", ["", "..", "a", "a-abcde", "a/b-abcdef", "../a-abcdef", "A-abcdef", "a-ABCDEF"])
def test_what_is_no_mount_name_is_not_taken_for_one(name: str) -> None:
    """Names come over the bus and become paths."""
    assert not is_mount_name(name)


def test_settings_survive_being_written_down() -> None:
    """They are kept beside a running client, and decide what a restarted one is."""
    before = settings(context={"subPath": "p", "juicefs/mount-delete-delay": "1m"}, mount_options=["a=1", "b"])
    assert ClientSettings.from_json(before.to_json()) == before
