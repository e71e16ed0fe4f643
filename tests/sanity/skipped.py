"""The specs that csi-sanity skips, each with the reason: `skipped.txt` is the list, docs/CSI-SANITY.md shows it."""

from pathlib import Path

from tests.sanity.csi_sanity import ROOT, VERSION

LIST = Path(__file__).with_name("skipped.txt")
DOCUMENT = ROOT / "docs" / "CSI-SANITY.md"
HEAD = f"""\
# csi-sanity

`tests/sanity` runs csi-sanity {VERSION}, the conformance suite of Kubernetes CSI, against the driver as `make demo`
starts it: controller, node, mountpod and nats-server, with real JuiceFS mounts. Every spec that applies to the driver's
capabilities passes. These are skipped, and the tests fail when one more is, or one less:

| spec | reason |
|---|---|
"""


def reasons() -> dict[str, str]:
    """Spec → why it does not apply; a line of the list is `spec: reason`, a blank line or one with # in front isn't."""
    lines = (line for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {spec: reason for spec, _, reason in (line.partition(": ") for line in lines)}


def document() -> str:
    """docs/CSI-SANITY.md as it must be."""
    return HEAD + "".join(f"| {spec} | {reason} |\n" for spec, reason in reasons().items())


if __name__ == "__main__":
    DOCUMENT.write_text(document())
