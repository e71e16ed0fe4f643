"""Runs in a pod as python3 -c <this file> held|anew PATH: writes with fsync.

On SIGUSR1 it says how long the longest round took since it was asked before, and how many failed.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

_PAUSE = 0.02
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND


class _Writer:
    """`held` keeps its handle as long as it can be used."""

    def __init__(self, kind: str, path: str) -> None:
        self._is_held = kind == "held"
        self._path = path
        self._handle = -1
        self._longest, self._failed = 0.0, 0
        self._began = time.monotonic()

    def run(self) -> None:
        while True:
            self._began = time.monotonic()
            try:
                self._write()
            except OSError as error:
                print(error, flush=True)
                self._failed += 1
                self._handle = -1
            self._longest = max(self._longest, time.monotonic() - self._began)
            time.sleep(_PAUSE)

    def _write(self) -> None:
        if self._handle < 0:
            self._handle = os.open(self._path, _FLAGS, 0o600)
        os.write(self._handle, b"one more line\n")
        os.fsync(self._handle)
        if not self._is_held:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def report(self, *_: object) -> None:
        said = {"longest": self._longest, "failed": self._failed}
        self._longest, self._failed = 0.0, 0
        Path("/tmp/new").write_text(json.dumps(said))
        Path("/tmp/new").rename("/tmp/report")


if __name__ == "__main__":
    writer = _Writer(*sys.argv[1:])
    signal.signal(signal.SIGUSR1, writer.report)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("started", flush=True)
    writer.run()
