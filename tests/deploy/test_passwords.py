"""juicefs-csi-nats-auth against a real API server, with the rights that deploy/ gives it."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from shared.nats_auth import SERVICES
from tests.deploy.kubectl import Kubectl
from tests.deploy.rendering import DEPLOY

PROGRAM = Path(sys.prefix) / "bin" / "juicefs-csi-nats-auth"
OVERLAY = DEPLOY / "overlays" / "mount-pod"

pytestmark = pytest.mark.timeout(180)  # the first test waits until the server is up


@pytest.fixture(scope="module")
def deployed(kubectl: Kubectl) -> Iterator[Kubectl]:
    made = kubectl("apply", "-k", OVERLAY)
    assert made.returncode == 0, made.stderr
    yield kubectl
    kubectl("delete", "--wait=false", "-k", OVERLAY)


@pytest.fixture(autouse=True)
def without(deployed: Kubectl) -> None:
    """No Secret is left of the test before."""
    deployed("delete", "secret", "-n", "kube-system", "juicefs-csi-nats-auth", "--ignore-not-found")


def run(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "--namespace", "kube-system", "--kubeconfig", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def kubeconfig(deployed: Kubectl, account: str = "juicefs-csi-nats-sa") -> Path:
    """Of a service account."""
    return deployed.server.kubeconfig_with(deployed("create", "token", "-n", "kube-system", account).stdout.strip())


def words(deployed: Kubectl) -> dict[str, str]:
    found = deployed("get", "secret", "-n", "kube-system", "juicefs-csi-nats-auth", "-o", "json")
    data: dict[str, str] = orjson.loads(found.stdout)["data"]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


def test_each_service_gets_a_password(deployed: Kubectl) -> None:
    """Of its own, long, and told to nobody."""
    finished = run(kubeconfig(deployed))
    found = words(deployed)

    assert finished.returncode == 0, finished.stderr
    assert sorted(found) == sorted(SERVICES)
    assert len(set(found.values())) == len(SERVICES)
    assert all(len(word) > 32 and word not in finished.stdout + finished.stderr for word in found.values())


def test_passwords_that_are_there_stay(deployed: Kubectl) -> None:
    """NATS is started again and again."""
    run(kubeconfig(deployed))
    before = words(deployed)
    finished = run(kubeconfig(deployed))

    assert finished.returncode == 0, finished.stderr
    assert words(deployed) == before


def test_another_account_is_refused(deployed: Kubectl) -> None:
    """And says what is missing, in one line."""
    finished = run(kubeconfig(deployed, "juicefs-csi-node-sa"))

    assert finished.returncode == 1
    assert "create" in finished.stderr
    assert "secrets" in finished.stderr
    assert "Traceback" not in finished.stderr
