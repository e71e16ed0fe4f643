"""The rows as text, as JSON and as the table of docs/BENCHMARKS.md."""

import re
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.rows import Row

_WIDTHS: Final = (17, 26, 26, 9, 14, 6)
_HEADS: Final = ("row", "figure", "floor", "ratio", "bar", "")
_TABLE: Final = r"(?<=<!-- {} -->\n).*?(?=<!-- end -->)"
_MARKS: Final = {"measured": False, "measured on a cluster": True}
"""What begins each of the two tables of the page."""


def line(cells: list[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def head() -> str:
    return line(list(_HEADS))


def write_json(path: Path, *, machine: dict[str, Any], rows: list[Row], failures: dict[str, str]) -> None:
    found = {"machine": machine, "rows": [row.to_json() for row in rows], "not_measured": failures}
    path.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


def write_markdown(path: Path, *, machine: dict[str, Any], rows: list[Row]) -> None:
    """Put machine and rows between the marks of the page. A table of which no row was measured stays as it is.

    Raises:
        ValueError: the page has no marks.
    """
    page = path.read_text(encoding="utf-8")
    described = " · ".join(f"{key} {value}" for key, value in machine.items())
    for mark, is_cluster in _MARKS.items():
        place = re.compile(_TABLE.format(mark), re.DOTALL)
        if not place.search(page):
            raise ValueError(f"{path} has no lines <!-- {mark} --> and <!-- end -->")
        if measured := [row for row in rows if row.is_of_cluster == is_cluster]:
            text = "\n".join(["", described, "", *_table(measured), "", ""])
            page = place.sub(text.replace("\\", r"\\"), page)
    path.write_text(page, encoding="utf-8")


def _table(rows: list[Row]) -> list[str]:
    lines = ["| row | what | figure | floor | ratio | bar | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        name, *rest = row.cells()
        lines.append(f"| {' | '.join([f'`{name}`', row.what, *rest])} |")
    return lines
