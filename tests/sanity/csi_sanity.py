"""Runs csi-sanity, the conformance suite of Kubernetes CSI, against the driver as a user runs it."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

import yaml

from demo.driver import Driver

ROOT = Path(__file__).parents[2]
VERSION = "v5.6.0"
MODULE = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
BINARY = ROOT / ".cache" / f"csi-sanity-{VERSION}" / "csi-sanity"
BUILD_TIMEOUT = 480.0
RUN_TIMEOUT = 120.0
GIB = 1 << 30

SECRETS = (
    "CreateVolumeSecret",
    "DeleteVolumeSecret",
    "ControllerValidateVolumeCapabilitiesSecret",
    "ControllerExpandVolumeSecret",
    "NodePublishVolumeSecret",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One spec of the suite. `status` is ginkgo's word: passed, skipped, pending, failed, panicked."""

    name: str
    status: str
    words: str

    @classmethod
    def of(cls, case: ET.Element) -> Self:
        words = [element.get("message", "") + (element.text or "") for element in case if element.tag != "system-err"]
        name = case.get("name", "").removeprefix("[It] ")
        return cls(name=name, status=case.get("status", ""), words="\n".join(words))


async def build() -> Path:
    """The program, built once from the module proxy.

    Raises:
        RuntimeError: with what Go said.
    """
    if not BINARY.exists():
        command = ["nice", str(ROOT / "scripts" / "go"), "install", f"{MODULE}@{VERSION}"]
        code, said = await _run(*command, timeout=BUILD_TIMEOUT, GOBIN=str(BINARY.parent))
        if code:
            raise RuntimeError(f"csi-sanity could not be built:\n{said}")
    return BINARY


async def check(driver: Driver, program: Path) -> list[Spec]:
    """Run every spec against the driver.

    Raises:
        RuntimeError: the suite left no report; with what it printed.
    """
    secrets, report = driver.base / "secrets.yaml", driver.base / "junit.xml"
    secrets.touch(mode=0o600)
    secrets.write_text(yaml.safe_dump(dict.fromkeys(SECRETS, driver.secrets)))
    _, said = await _run(
        str(program),
        f"--csi.endpoint=unix://{driver.socket('node')}",
        f"--csi.controllerendpoint=unix://{driver.socket('controller')}",
        f"--csi.secrets={secrets}",
        f"--csi.mountdir={driver.pods / 'mount'}",
        f"--csi.stagingdir={driver.pods / 'staging'}",
        f"--csi.testvolumesize={GIB}",
        f"--csi.testvolumeexpandsize={2 * GIB}",
        f"--ginkgo.junit-report={report}",
        "--ginkgo.seed=1",
        "--ginkgo.v",
        "--ginkgo.no-color",
        timeout=RUN_TIMEOUT,
    )
    if not report.exists():
        raise RuntimeError(f"csi-sanity left no report:\n{said[-4000:]}")
    return [Spec.of(case) for case in ET.parse(report).iter("testcase")]  # noqa: S314 - our own child wrote it


async def _run(*command: str, timeout: float, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), timeout)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")
