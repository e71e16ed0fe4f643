"""The nouns refuse what they can't be."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import GIB, Secret, Subpath, TargetPath, capacity_in_range, digest, letters, require_text
from shared.errors import InvalidRequest, OutOfRange

ROOT = "/var/lib/kubelet"


def test_a_secret_prints_stars_everywhere() -> None:
    """No format of a Secret shows its value."""
    secret = Secret("marker")
    assert "marker" not in f"{secret} {secret!r} {secret!s} {[secret]} {{'k': {secret}}}"


def test_a_secret_is_not_written_anywhere() -> None:
    """Pickling would put the value into a file or a pipe."""
    with pytest.raises(TypeError):
        pickle.dumps(Secret("marker"))


@pytest.mark.parametrize("value", ["", "a\x00b", "a\nb", "x" * 129, "é" * 65])
def test_bad_text_is_refused_without_being_shown(value: str) -> None:
    """The field is named, the value is not shown."""
    with pytest.raises(InvalidRequest, match="volume_id") as refusal:
        require_text(value, field="volume_id")
    assert not value or value not in str(refusal.value)


def test_what_is_no_text_is_refused() -> None:
    """The wire's decoder lets a number through where text belongs."""
    with pytest.raises(InvalidRequest):
        require_text(150, field="volume_id")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        "relative/path",
        "/etc/passwd",
        f"{ROOT}",
        f"{ROOT}/",
        f"{ROOT}/../../etc",
        f"{ROOT}/pods/./x",
        f"{ROOT}/pods//x",
        f"{ROOT}/pods/x/",
        f"{ROOT}-evil/pods",
        f"{ROOT}/pods/a\nb",
        f"{ROOT}/pods/a\x00b",
        f"{ROOT}/" + "x" * 4096,
    ],
)
def test_a_target_outside_or_not_plain_is_refused(value: str) -> None:
    """Promise 21: only plain paths below the pod directory."""
    with pytest.raises(InvalidRequest, match="target_path"):
        TargetPath.parse(value, root=ROOT)


def test_a_target_with_odd_characters_is_taken_literally() -> None:
    """Quotes, spaces and dollars mean nothing to a system call."""
    path = f"{ROOT}/pods/$(id) `x` 'y' \"z\"/mount"
    assert str(TargetPath.parse(path, root=f"{ROOT}/")) == path


@pytest.mark.parametrize("value", ["..", "a/../b", "./a", "a/.", "a\nb", "x" * 1025])
def test_a_subpath_that_climbs_is_refused(value: str) -> None:
    """Promise 21."""
    with pytest.raises(InvalidRequest, match="subPath"):
        Subpath.parse(value, field="subPath")


@given(st.text(alphabet="ab/", max_size=12), st.text(alphabet="ab/", max_size=12))
def test_overlap_is_symmetric_and_the_root_overlaps_everything(one: str, two: str) -> None:
    """Promise 5: equal or containing, whichever way round."""
    first, second = Subpath.parse(one, field="p"), Subpath.parse(two, field="p")
    assert first.overlaps(second) == second.overlaps(first)
    assert Subpath().overlaps(first)


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_a_capacity_is_whole_gib_within_the_range(required: int, limit: int) -> None:
    """A size below 1 GiB is rounded up, and the limit is respected."""
    try:
        capacity = capacity_in_range(required=required, limit=limit)
    except OutOfRange:
        assert limit < -(-max(required, 1) // GIB) * GIB
    except InvalidRequest:
        assert limit < required
    else:
        assert capacity % GIB == 0
        assert capacity >= required
        assert not limit or capacity <= limit


@given(st.dictionaries(st.text(), st.text()))
def test_equal_values_have_equal_digests(value: dict[str, str]) -> None:
    """The order of a map's keys means nothing."""
    assert digest(value) == digest(dict(reversed(value.items())))


def test_letters_are_a_name() -> None:
    """Six lowercase letters, the same for the same digest."""
    assert letters(digest("x")) == letters(digest("x"))
    assert letters(digest("x")).isalpha()
    assert letters(digest("x")).islower()
