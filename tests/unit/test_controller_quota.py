"""Reading the table that `juicefs quota get` prints."""

import pytest

from services.controller.quota import Quota
from shared.domain import GIB

TIB = 1024 * GIB


def table(size: str, path: str = "/pvc-a/b") -> str:
    return (
        "2026/11/23 21:02:28.809187 juicefs[1] <INFO>: Meta address: sqlite3:///a.db [NewClient@interface.go:645]\n"
        "+----------+---------+------+------+-----------+-------+-------+\n"
        "|   Path   |   Size  | Used | Use% |   Inodes  | IUsed | IUse% |\n"
        "+----------+---------+------+------+-----------+-------+-------+\n"
        f"| {path} | {size} |  0 B |   0% | unchanged |     0 |       |\n"
        "+----------+---------+------+------+-----------+-------+-------+\n"
    )


@pytest.mark.parametrize(("size", "capacity"), [("1.0 GiB", GIB), ("10 GiB", 10 * GIB), ("1023 GiB", 1023 * GIB)])
def test_gib_are_exact(size: str, capacity: int) -> None:
    """Whole GiB are shown whole."""
    quota = Quota.parse(table(size))

    assert quota.may_be(capacity)
    assert not quota.may_be(capacity + GIB)
    assert not quota.may_be(capacity - GIB)
    assert quota.exceeds(capacity - GIB)
    assert not quota.exceeds(capacity)


def test_tib_are_rounded() -> None:
    """1537 GiB and 1536 GiB are both shown as 1.5 TiB."""
    quota = Quota.parse(table("1.5 TiB"))

    assert quota.may_be(1536 * GIB)
    assert quota.may_be(1537 * GIB)
    assert not quota.exceeds(1536 * GIB)
    assert quota.exceeds(TIB)
    assert not quota.may_be(TIB)


@pytest.mark.parametrize("output", ["", "Meta address: x\n", table("unchanged")])
def test_no_limit_is_no_capacity(output: str) -> None:
    """A directory without a quota, or with one that limits nothing."""
    assert Quota.parse(output) == Quota()


def test_a_path_may_look_like_a_table() -> None:
    """Names are taken literally."""
    assert Quota.parse(table("2.0 GiB", path="/a | 9.0 GiB | b")).may_be(2 * GIB)
