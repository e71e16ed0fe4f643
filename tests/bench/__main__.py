"""`make bench`: what the driver costs, beside what it would cost at least. Needs root and /dev/fuse.

A row is the median of its samples with the least and the most; floors are measured in turns with what they are the
floor of. A bar that is missed is a finding, not a failure.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop

from tests.bench import binding, clients, deleting, load, machine, report
from tests.bench.cluster import claims, pods, recovery, requests, rest, scale
from tests.bench.rows import Row, Skipped, Tell

_LONGEST: Final = 600.0
"""Seconds that one measurement may take."""

MEASUREMENTS: Final[dict[str, Callable[[Tell], Awaitable[list[Row]]]]] = {
    "warm": binding.warm,
    "burst": binding.burst,
    "unpublish": binding.unpublish,
    "cold": clients.cold,
    "cold-new": clients.cold_new,
    "delete": deleting.delete,
    "heal": clients.heal,
    "many": load.many,
    "rpc": load.rpc,
    "k8s-cold": pods.cold,
    "k8s-warm": pods.warm,
    "k8s-bursts": pods.bursts,
    "k8s-claims": claims.many,
    "k8s-end": claims.end,
    "k8s-killed": recovery.killed,
    "k8s-pod-deleted": recovery.deleted,
    "k8s-memory": rest.containers,
    "k8s-requests": requests.requests,
    "scale-claims": scale.claims,
    "scale-memory": scale.memory,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="what can be measured")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, metavar="ROW", help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="renew the table of this page")
    return parser.parse_args()


def tell(name: str) -> Tell:
    """Progress on stderr, one line that is written over, and only for a person."""
    shown = 0.0

    def say(text: str) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            print(f"\r\x1b[K  … {name}: {text}", end="", file=sys.stderr, flush=True)

    return say


def refuse() -> str:
    """Why nothing can be measured here; empty if it can."""
    if os.geteuid() != 0:
        return "the benchmarks mount file systems: run them as root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse: load the kernel module (modprobe fuse)"
    return ""


async def measure(names: list[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows, and why a measurement has none."""
    rows, failures = list[Row](), dict[str, str]()
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    print(report.head())
    for name in names:
        try:
            async with asyncio.timeout(_LONGEST):
                found = await MEASUREMENTS[name](tell(name))
        except Skipped as reason:
            print(f"{name:17} skipped: {reason}", flush=True)
            continue
        except TimeoutError as error:
            failures[name] = str(error) or f"not done within {_LONGEST:.0f} s"
        except Exception as error:  # noqa: BLE001 - the other rows can be measured still
            traceback.print_exception(error)
            failures[name] = f"{type(error).__name__}: {error}"
        else:
            rows += found
            for row in found:
                print(report.line(row.cells()), flush=True)
            continue
        print(f"{name:17} not measured: {failures[name]}", flush=True)
    return rows, failures


def main() -> int:
    options = parse()
    if options.list:
        for name, measurement in MEASUREMENTS.items():
            print(f"{name:10} {(measurement.__doc__ or '').rstrip('.')}")
        return 0
    if reason := refuse():
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    described = machine.describe()
    print(" · ".join(f"{key} {value}" for key, value in described.items()), end="\n\n")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows, failures = runner.run(measure(options.only or list(MEASUREMENTS)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted; everything is cleaned up", file=sys.stderr)
        return 130
    if options.json:
        report.write_json(options.json, machine=described, rows=rows, failures=failures)
    if options.markdown and not failures:
        report.write_markdown(options.markdown, machine=described, rows=rows)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
