"""The rows as text, as JSON and as the table of docs/BENCHMARKS.md."""

import re
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.rows import Row

_WIDTHS: Final = (17, 26, 26, 9, 14, 6)
_HEADS: Final = ("row", "figure", "floor", "ratio", "bar", "")
_MEASURED: Final = re.compile(r"(?<=<!-- measured -->\n).*(?=<!-- end -->)", re.DOTALL)


def line(cells: list[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def head() -> str:
    return line(list(_HEADS))


def write_json(path: Path, *, machine: dict[str, Any], rows: list[Row], failures: dict[str, str]) -> None:
    found = {"machine": machine, "rows": [row.to_json() for row in rows], "not_measured": failures}
    path.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


def write_markdown(path: Path, *, machine: dict[str, Any], rows: list[Row]) -> None:
    """Put machine and rows between the marks of the page.

    Raises:
        ValueError: the page has no marks.
    """
    page = path.read_text(encoding="utf-8")
    if not _MEASURED.search(page):
        raise ValueError(f"{path} has no lines <!-- measured --> and <!-- end -->")
    described = " · ".join(f"{key} {value}" for key, value in machine.items())
    table = ["| row | what | figure | floor | ratio | bar | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        name, *rest = row.cells()
        table.append(f"| {' | '.join([f'`{name}`', row.what, *rest])} |")
    text = "\n".join(["", described, "", *table, "", ""])
    path.write_text(_MEASURED.sub(lambda _: text, page), encoding="utf-8")
