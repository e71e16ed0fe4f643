"""A workload that notices everything: run as a process of its own, it works until its stdin is closed.

`write` keeps one handle open and appends with fsync every 100 ms; `read` opens, reads, lists and stats anew every
20 ms. It prints a dot after each round, and in the end one JSON object: rounds, the longest one in milliseconds, and
every error it saw.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path


def writer(directory: Path) -> Callable[[], None]:
    """Append a line and wait until it is safe, through a handle opened once."""
    handle = os.open(directory / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def step() -> None:
        os.write(handle, b"one more line\n")
        os.fsync(handle)

    return step


def reader(directory: Path) -> Callable[[], None]:
    """Everything anew: open, read, list, stat."""

    def step() -> None:
        (directory / "greeting").read_text()
        list(directory.iterdir())
        (directory / "greeting").stat()

    return step


KINDS = {"write": (writer, 0.1), "read": (reader, 0.02)}


def main() -> None:
    kind, directory = sys.argv[1:]
    make, pause = KINDS[kind]
    step, rounds, longest, errors = make(Path(directory)), 0, 0.0, []
    while not select.select([sys.stdin], [], [], pause)[0]:
        started = time.monotonic()
        try:
            step()
        except OSError as error:
            errors.append(str(error))
        rounds += 1
        longest = max(longest, time.monotonic() - started)
        print(".", flush=True)
    print(json.dumps({"rounds": rounds, "longest_ms": round(longest * 1000), "errors": errors}), flush=True)


if __name__ == "__main__":
    main()
