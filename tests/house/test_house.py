"""The rules of the house that no linter knows, for every module of services and shared but the generated ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "shared" / "api"
MODULES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for package in ("services", "shared")
    for path in sorted((ROOT / package).rglob("*.py"))
    if GENERATED not in path.parents
}
FORBIDDEN = {
    "recursive delete": r"(shutil\.)?rmtree|rm|.*\brm +-\w*[rR].*",
    "shell": r"shell=True|os\.(system|popen)|.*subprocess_shell|subprocess\.get\w*output",
    "sleep that stops the loop": r"time\.sleep",
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_nothing_forbidden_is_used(rule: str) -> None:
    """No code can delete more than it names, give data to a shell, or stop the event loop."""
    pattern = re.compile(FORBIDDEN[rule], re.DOTALL)

    assert [f"{module}: {word}" for module, word in _words() if pattern.fullmatch(word)] == []


def test_modules_are_short() -> None:
    """A module has at most 300 lines: a longer one misses a noun."""
    lines = {module: len((ROOT / module).read_text().splitlines()) for module in MODULES}

    assert {module: count for module, count in lines.items() if count > 300} == {}


def test_functions_are_short() -> None:
    """A function has at most 60 lines, its docstring included."""
    lines = {
        f"{module}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {function: count for function, count in lines.items() if count > 60} == {}


def _words() -> Iterator[tuple[str, str]]:
    """Every dotted name, keyword argument and string of every module."""
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute() | ast.keyword():
                    yield module, ast.unparse(node)
                case ast.ImportFrom():
                    yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)
                case ast.Constant(value=str(text)):
                    yield module, text
