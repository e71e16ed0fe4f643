"""Amounts as Kubernetes writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import quantity
from shared.domain import GIB
from shared.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("10Gi", 10 * GIB),
        ("0.5Gi", GIB // 2),
        ("500M", 500_000_000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12", 12),
        ("100m", 1),
        ("1500m", 2),
        ("3k", 3000),
        ("1Ei", 1 << 60),
        ("-1Ki", -1024),
        ("1.", 1),
        (".5k", 500),
    ],
)
def test_an_amount_is_read(text: str, count: int) -> None:
    """Rounded up to a whole one."""
    assert quantity.whole(text, field="size") == count


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1GiB", "1g", "1e", "1e999", "٣", "1_0", "0x1", "NaN", "1" * 50])
def test_what_is_no_amount_is_refused(text: str) -> None:
    """By the name of its field."""
    with pytest.raises(InvalidRequest, match="size is no quantity"):
        quantity.whole(text, field="size")


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_is_read_as_it_was_written(count: int) -> None:
    """Both ways."""
    assert quantity.whole(quantity.of_bytes(count), field="size") == count


def test_a_size_is_written_for_people() -> None:
    """In GiB where it can be."""
    assert (quantity.of_bytes(2 * GIB), quantity.of_bytes(GIB + 1)) == ("2Gi", str(GIB + 1))
