"""Clients that are killed or deleted under a writer: how long it waits, and what fails."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.cluster.place import Place, place, until
from tests.bench.rows import Row, Tell
from tests.e2e.cluster import SYSTEM

_TIMES: Final = 5
_CALM: Final = 1.0
"""Seconds that the writer works before and after what happens to it."""
_WRITER: Final = (Path(__file__).parent / "writing.py").read_text(encoding="utf-8")
_KILL: Final = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */juicefs) kill -9 ${p#/proc/};; esac; done; true"


async def killed(tell: Tell) -> list[Row]:
    """All processes of the client killed with -9 in the mount pod, under a writer that opens anew each time."""

    async def kill(here: Place, pod: str) -> None:
        await here.case.cluster.exec(pod, "sh", "-c", _KILL)

    return [await _row("killed", kill, tell=tell, what="client killed under a writer")]


async def deleted(tell: Tell) -> list[Row]:
    """The mount pod deleted under a writer that keeps its file open."""

    async def delete(here: Place, pod: str) -> None:
        await here.delete(pod, namespace=SYSTEM)

    return [await _row("pod-deleted", delete, tell=tell, what="mount pod deleted under a writer")]


async def _row(name: str, harm: Callable[[Place, str], Awaitable[None]], *, tell: Tell, what: str) -> Row:
    """The longest that one round of the writer took: open, write, fsync, close; or write and fsync."""
    stalls, failed = list[float](), 0
    kind = {"killed": "anew", "pod-deleted": "held"}[name]
    async with place(name) as here:
        volume = await here.case.claim()
        await here.create(_writer(here, kind))
        await here.started("writer")
        for number in range(_TIMES):
            tell(f"{number}/{_TIMES}")
            before = (await here.case.cluster.mount_pod(volume))["metadata"]
            await asyncio.sleep(_CALM)
            await _report(here)
            await harm(here, before["name"])
            await _serves_again(here, volume, before["uid"], is_deleted=kind == "held")
            await asyncio.sleep(_CALM)
            said = await _report(here)
            stalls.append(said["longest"])
            failed += said["failed"]
        await here.delete("writer")
    handle = "its file open" if kind == "held" else "its file opened anew"
    words = f"{what}, {handle}: the longest stall; {failed} failed calls"
    return Row(name=f"k8s-{name}", what=words, unit="s", samples=stalls)


def _writer(here: Place, kind: str) -> dict[str, Any]:
    made = here.pod("writer", {"data": "data"})
    made["spec"]["containers"][0]["command"] = ["python3", "-c", _WRITER, kind, "/data/written"]
    return made


async def _report(here: Place) -> dict[str, Any]:
    """What happened to the writer since the last report."""
    printed = await here.case.exec("sh", "-c", "kill -USR1 1; sleep 0.5; cat /tmp/report", pod="writer")
    said: dict[str, Any] = orjson.loads(printed)
    return said


async def _serves_again(here: Place, volume: str, uid: str, *, is_deleted: bool) -> None:
    """A client serves the volume: of another pod where it was deleted, in the same one otherwise."""
    if is_deleted:
        await here.case.cluster.mount_pod(volume, but=uid)
        return

    async def serves() -> bool:
        return bool(re.search(r"\S", await here.case.exec("ls", "/data", pod="writer")))

    await until(serves, what=f"volume {volume} serves again")
