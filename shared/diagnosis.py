"""Why the JuiceFS client failed, told from what it printed: a class for machines and one line for people.

The client has no exit codes and retries in silence, so its output is all there is. Every pattern below was seen with
juicefs 1.4.2; what fits none is UNKNOWN with the last line.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from shared.domain import Secret

META_UNREACHABLE: Final = "META_UNREACHABLE"
META_AUTH: Final = "META_AUTH"
META_NOT_FORMATTED: Final = "META_NOT_FORMATTED"
META_INVALID: Final = "META_INVALID"
BUCKET_UNREACHABLE: Final = "BUCKET_UNREACHABLE"
BUCKET_AUTH: Final = "BUCKET_AUTH"
FORMAT_MISMATCH: Final = "FORMAT_MISMATCH"
MOUNT_OPTION: Final = "MOUNT_OPTION"
FUSE_UNAVAILABLE: Final = "FUSE_UNAVAILABLE"
UNKNOWN: Final = "UNKNOWN"

_NETWORK: Final = (
    r"connection refused|no such host|i/o timeout|no route to host|network is unreachable|deadline exceeded"
    r"|connection reset|connection timed out|handshake|x509:|\bEOF\b"
)
_STORAGE: Final = r"(?:storage|operation error|failed to (?:put|get|create))"

# A line belongs to the first class that it fits.
_CLASSES: Final = tuple(
    (reason, re.compile("|".join(patterns), re.IGNORECASE))
    for reason, patterns in {
        META_NOT_FORMATTED: (r"database is not formatted",),
        FORMAT_MISMATCH: (r"cannot update volume", r"is not empty; please clean it up"),
        MOUNT_OPTION: (
            r"unknown option",
            r"flag provided but not defined",
            r"invalid value .* for",
            r"flag needs an argument",
            r"requires at least 2 arguments",
            r"should not be less than",
            r"unsupported compress",
        ),
        FUSE_UNAVAILABLE: (
            r"/dev/fuse",
            r"fusermount.*(?:not found|not permitted|permission denied|no such file)",
            r"fuse: device not found",
        ),
        BUCKET_AUTH: (
            _STORAGE + r".*(?:denied|forbidden|\b40[13]\b|SignatureDoesNotMatch|InvalidAccessKey|InvalidToken)",
            _STORAGE + r".*(?:credential|ExpiredToken|unauthori[sz]ed)",
        ),
        BUCKET_UNREACHABLE: (
            rf"{_STORAGE}.*(?:{_NETWORK})",
            r"storage .* is not configured correctly",
            r"test storage .* failed",
            r"object storage: ",
        ),
        META_AUTH: (
            r"\b(?:WRONGPASS|NOAUTH|NOPERM)\b",
            r"invalid password",
            r"(?:password )?authentication failed",
            r"access denied for user",
            r"no pg_hba\.conf entry",
            r"SQLSTATE 28",
        ),
        META_INVALID: (
            r"invalid meta driver",
            r"invalid uri",
            r"redis parse",
            r"invalid database",
            r"not a database",
            r"unable to open database",
            r"unknown database",
            r"database .* does not exist",
            r"DB index is out of range",
            r"cannot parse",
            r"default addr for network",
            r"invalid DSN",
            r"readonly database",
        ),
        META_UNREACHABLE: (r"Meta .* is not available", r"failed to dial", r"ping database", _NETWORK),
    }.items()
)
# The client says what it tries before it tries it: a last word of this kind means that nobody answered.
_SILENCE: Final = tuple(
    (reason, re.compile(pattern))
    for reason, pattern in (
        (META_UNREACHABLE, r"^Meta address: |PING DATABASE"),
        (BUCKET_UNREACHABLE, r"^Data use (?!file://)"),
    )
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(
    r"^(?:\.*\d{4}/\d\d/\d\d [\d:.]+ juicefs\[\d+\] <(?P<level>[A-Z]+)>: "
    r"|redis: [\d/]+ [\d:]+ \S+?:\d+: |\[xorm\] \[\w+\] +[\d/]+ [\d:.]+ )"
)
_SUFFIX = re.compile(r" \[\w+@[\w./-]+:\d+\]$")
_URL_PASSWORD = re.compile(r"(://[^\s:@/]*:)[^\s]*@")
# The hand-over socket is our own affair: a client that finds nobody there goes on without.
_OURS = re.compile(r"^(?:dial|send fd to) \S*/comm\.sock")
_LINE_CHARACTERS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`reason` is one of the classes above, `line` the client's own words, secrets masked, one line."""

    reason: str
    line: str


def diagnose(output: str, *, marks: Iterable[Secret]) -> Diagnosis | None:
    """The class of a failure and the line that shows it: the last one that fits a class. None without output."""
    lines = _lines(masked(output, marks))
    for level, line in reversed(lines):
        reason = _class(line)
        if reason and level not in {"INFO", "DEBUG"}:
            return Diagnosis(reason=reason, line=line)
    errors = [line for level, line in lines if level in {"FATAL", "ERROR"}]
    last = errors[-1] if errors else lines[-1][1] if lines else ""
    if not last:
        return None
    silence = next((reason for reason, pattern in _SILENCE if pattern.search(last)), UNKNOWN)
    return Diagnosis(reason=silence, line=last)


def masked(text: str, marks: Iterable[Secret]) -> str:
    """The text without the marks, and without the password of any URL."""
    for mark in sorted({mark.reveal() for mark in marks if mark}, key=len, reverse=True):
        text = text.replace(mark, "***")
    return _URL_PASSWORD.sub(r"\1****@", text)


def _class(line: str) -> str:
    return next((reason for reason, pattern in _CLASSES if pattern.search(line)), "")


def _lines(output: str) -> list[tuple[str, str]]:
    """(level, words) of each line that says something, without colours and log prefixes."""
    found = []
    for raw in _COLOUR.sub("", output).splitlines():
        text = raw.strip()
        prefix = _PREFIX.match(text)
        words = _SUFFIX.sub("", text[prefix.end() :] if prefix else text).strip()
        if words and not _OURS.match(words):
            found.append((prefix["level"] or "" if prefix else "", words[:_LINE_CHARACTERS]))
    return found
