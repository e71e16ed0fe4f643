"""The machine that was measured, and the programs on it: figures mean nothing without."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo.driver import program
from shared.identity import VERSION


def describe() -> dict[str, Any]:
    """In the order in which a person wants to know."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "driver": VERSION,
        "cores": os.cpu_count(),
        "cpu": _value("/proc/cpuinfo", "model name"),
        "memory": f"{int(_value('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "juicefs": _version("juicefs", "version"),
        "nats-server": _version("nats-server", "--version"),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def available() -> int:
    """Bytes of memory that can be had."""
    return int(_value("/proc/meminfo", "MemAvailable").split()[0]) << 10


def pss(pid: int) -> float:
    """MiB of a process: its own pages, and its share of those it has with others (proc(5), smaps_rollup)."""
    return int(_value(f"/proc/{pid}/smaps_rollup", "Pss").split()[0]) / 1024


def rss(pid: int) -> float:
    """MiB of a process, pages that it shares with others counted in full."""
    return int(_value(f"/proc/{pid}/status", "VmRSS").split()[0]) / 1024


def peak(pid: int) -> float:
    """MiB that a process had at most, pages that it shares with others counted in full."""
    return int(_value(f"/proc/{pid}/status", "VmHWM").split()[0]) / 1024


def _value(path: str, key: str) -> str:
    with Path(path).open(encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "0 kB")


def _version(name: str, argument: str) -> str:
    printed = subprocess.run([program(name), argument], capture_output=True, text=True, timeout=10, check=True).stdout
    return printed.strip().rpartition("version ")[2].removeprefix("nats-server: v").partition("+")[0]
