"""Every suite is run by `make test`."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_suite_is_left_out() -> None:
    """But tests/e2e, which needs a cluster (`make e2e`)."""
    suites = {f"tests/{module.parent.name}" for module in (ROOT / "tests").glob("*/test_*.py")}

    assert suites - {"tests/e2e"} - set((ROOT / "Makefile").read_text().split()) == set()
