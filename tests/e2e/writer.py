"""A workload that notices everything, run in a pod: python3 -c <this file> KIND DIRECTORY.

`held` keeps one handle open and appends with fsync every 100 ms; `anew` opens, writes, reads and lists every 20 ms.
Its report is in /tmp/report at any time: rounds, the longest one, and every error. A handle that was open for writing
when its client was killed may say EBADF, once a kill: those are counted apart.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def held(directory: Path) -> Callable[[], None]:
    handle = os.open(directory / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def step() -> None:
        os.write(handle, b"one more line\n")
        os.fsync(handle)

    return step


def anew(directory: Path) -> Callable[[], None]:
    path = directory / "anew"

    def step() -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(handle, b"written")
            os.fsync(handle)
        finally:
            os.close(handle)
        if path.read_bytes() != b"written":
            raise OSError(errno.EIO, "what was written is not there")
        list(directory.iterdir())

    return step


def main() -> None:
    kind, directory = sys.argv[1:]
    make, pause = {"held": (held, 0.1), "anew": (anew, 0.02)}[kind]
    step, rounds, longest, lost = make(Path(directory)), 0, 0.0, 0
    errors: list[str] = []
    while True:
        started = time.monotonic()
        try:
            step()
        except OSError as error:
            if error.errno == errno.EBADF and kind == "anew":
                lost += 1
            elif len(errors) < 20:
                errors.append(f"round {rounds}: {error}")
        rounds += 1
        longest = max(longest, time.monotonic() - started)
        report = {"rounds": rounds, "longest_ms": round(longest * 1000), "lost_handles": lost, "errors": errors}
        Path("/tmp/report.new").write_text(json.dumps(report))
        Path("/tmp/report.new").rename("/tmp/report")
        time.sleep(pause)


if __name__ == "__main__":
    main()
