"""What the client prints, and what it means (client_lines.tsv: lines of juicefs 1.4.2)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.diagnosis import diagnose, masked
from shared.domain import Secret

STAMP = "2026/11/23 20:33:43.447438 juicefs[6217]"
LINES = Path(__file__).with_name("client_lines.tsv")


@pytest.mark.parametrize(
    ("reason", "line"),
    [row.split("\t") for row in LINES.read_text().splitlines()],
)
def test_each_failure_has_its_class(reason: str, line: str) -> None:
    """Promise 10: a failure names its class and the client's own words."""
    found = diagnose(f"{STAMP} <INFO>: Meta address: redis://h [NewClient@interface.go:645]\n{line}\n", marks=())

    assert found is not None
    assert found.reason == reason
    assert found.line in line
    assert "juicefs[" not in found.line


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("META_UNREACHABLE", f"{STAMP} <INFO>: Meta address: redis://h:1 [NewClient@interface.go:645]"),
        ("META_UNREACHABLE", "[xorm] [info]  2026/11/23 20:52:16.799373 PING DATABASE mysql"),
        ("BUCKET_UNREACHABLE", f"{STAMP} <INFO>: Data use s3://h/b/demo/ [format@format.go:571]"),
    ],
)
def test_silence_after_a_try_means_that_nobody_answers(reason: str, line: str) -> None:
    """A server that takes the connection and says nothing makes the client wait without a word."""
    found = diagnose(f"something\n{line}\n", marks=())

    assert found is not None
    assert found.reason == reason


def test_the_last_line_that_tells_something_counts() -> None:
    """What gave up says less than what went wrong before."""
    output = (
        f"{STAMP} <WARNING>: WRONGPASS x [a@b.go:1]\n{STAMP} <FATAL>: fail 3 times in 3.2s, give up [main@main.go:31]\n"
    )

    found = diagnose(output, marks=())

    assert found is not None
    assert (found.reason, found.line) == ("META_AUTH", "WRONGPASS x")


def test_colours_are_left_out() -> None:
    """A client that thinks it has a terminal."""
    found = diagnose("\x1b[31mWRONGPASS\x1b[0m x", marks=())

    assert found is not None
    assert found.line == "WRONGPASS x"


@pytest.mark.parametrize("output", ["", "\n \n", "\x1b[0m\n"])
def test_no_words_no_diagnosis(output: str) -> None:
    """Nothing printed, nothing claimed."""
    assert diagnose(output, marks=()) is None


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter2@h/1", "redis://user:hunter2@h/1", "mysql://user:hunt/er2@(h)/x", "redis://:hunt@er2@h"],
)
def test_the_password_of_any_url_is_masked(url: str) -> None:
    """Also of one that nobody told us about."""
    assert "er2" not in masked(f"redis parse {url}: invalid", ())


@given(st.text(min_size=1), st.text(), st.text())
def test_marks_never_survive(mark: str, before: str, after: str) -> None:
    """Promise 22, wherever the mark stands."""
    shown = masked(f"{before}{mark}{after}", [Secret(mark)])

    assert mark not in shown.replace("***", "") or set(mark) <= {"*"}


@given(st.text())
def test_any_output_is_told_in_one_line(output: str) -> None:
    """Whatever is printed: no crash, one line, not endless."""
    found = diagnose(output, marks=())

    assert found is None or (len(found.line.splitlines()) == 1 and len(found.line) <= 500)
