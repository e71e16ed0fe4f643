"""deploy/ against a real API server: it takes the objects, and gives the rights that were reviewed, no others."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.kubectl import Kubectl
from tests.deploy.rendering import DEPLOY, ROOT

RIGHTS = Path(__file__).parent / "rights"
NAMESPACES = ("kube-system", "default")
ACCOUNTS = [
    ("mount-pod", "juicefs-csi-controller-sa"),
    ("mount-pod", "juicefs-csi-mount-sa"),
    ("mount-pod", "juicefs-csi-mountpod-sa"),
    ("mount-pod", "juicefs-csi-nats-sa"),
    ("mount-pod", "juicefs-csi-node-sa"),
    ("mount-pod", "juicefs-csi-tap-sa"),
    ("official-sidecars", "juicefs-csi-controller-sa"),
]

pytestmark = pytest.mark.timeout(180)  # the first test waits until the server is up


def test_the_api_server_takes_it(kubectl: Kubectl, shipped: Path) -> None:
    """Every object, without a warning."""
    applied = kubectl("apply", "--dry-run=server", "-k", shipped)

    assert (applied.returncode, applied.stderr) == (0, "")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_api_server_takes_an_example(kubectl: Kubectl, example: Path) -> None:
    applied = kubectl("apply", "--dry-run=server", "-f", example)

    assert (applied.returncode, applied.stderr) == (0, "")


@pytest.fixture(scope="module")
def applied(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[str]:
    """An overlay whose objects are there, until it is deleted as a user would."""
    overlay = DEPLOY / "overlays" / request.param
    made = kubectl("apply", "-k", overlay)
    assert made.returncode == 0, made.stderr
    yield request.param
    deleted = kubectl("delete", "--wait=false", "-k", overlay)
    assert deleted.returncode == 0, deleted.stderr


@pytest.mark.parametrize(("applied", "account"), ACCOUNTS, indirect=["applied"])
def test_rights_are_as_reviewed(kubectl: Kubectl, applied: str, account: str) -> None:
    """tests/deploy/rights holds what `kubectl auth can-i --list` says; a difference is to be understood first."""
    suffix = "" if applied == "mount-pod" else f".{applied}"
    found = "".join(f"# in {namespace}\n{rights(kubectl, account, namespace)}" for namespace in NAMESPACES)

    assert found == (RIGHTS / f"{account}{suffix}.txt").read_text()


def rights(kubectl: Kubectl, account: str, namespace: str) -> str:
    """One line a rule: resource, names, verbs; without what everyone may do (discovery, reviews of oneself)."""
    user = f"system:serviceaccount:kube-system:{account}"
    listed = kubectl("auth", "can-i", "--list", "--no-headers", f"--namespace={namespace}", user=user)
    assert listed.returncode == 0, listed.stderr
    lines = [line for line in listed.stdout.splitlines() if not line.startswith((" ", "self"))]
    return "".join(f"{line}\n" for line in sorted(re.sub(r"(\s|\[\])+", " ", line).strip() for line in lines))
