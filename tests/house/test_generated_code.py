"""The committed wire code is what the committed protos generate."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    """Regenerating shared/api changes no byte, adds no file and leaves none out."""
    subprocess.run([ROOT / "scripts" / "proto", tmp_path], check=True, capture_output=True)

    assert _python_files(ROOT / "shared" / "api") == _python_files(tmp_path)


def _python_files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.py")}
