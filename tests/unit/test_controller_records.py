"""Records as they lie in a file system."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.records import Record, require_own
from shared.domain import GIB, Subpath
from shared.errors import InvalidRequest

RECORD = Record(volume_id="v", path=Subpath(text="a/v"), capacity=GIB, source="s")


def test_a_record_is_read_as_it_was_written() -> None:
    """Memory is a cache."""
    assert Record.from_json(RECORD.to_json()) == RECORD


@pytest.mark.parametrize("path", ["", "/", "..", "a/../..", ".juicefs-csi", ".trash/x", "x" * 256])
def test_a_record_can_not_name_what_is_no_volume(path: str) -> None:
    """Promise 5: not even a record that somebody else wrote."""
    with pytest.raises(InvalidRequest):
        Record.from_json(b'{"volume_id": "v", "path": "%s", "capacity": 0, "source": ""}' % path.encode())


@given(st.binary())
def test_what_is_no_record_is_none(content: bytes) -> None:
    """A file that was cut short, or anything else."""
    with pytest.raises((InvalidRequest, ValueError, KeyError, TypeError)):
        Record.from_json(content)


@given(st.text(), st.text())
def test_no_volume_holds_what_the_file_system_keeps_for_itself(one: str, other: str) -> None:
    """Whatever a path is made of."""
    try:
        path = require_own(Subpath.parse(f"{one}/{other}", field="path"))
    except InvalidRequest:
        return
    assert path.text
    assert path.text.partition("/")[0] not in {".", "..", ".juicefs-csi", ".trash"}
