"""juicefs-csi-nats-auth against a real API server, with the rights that deploy/ gives it."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from shared.nats_auth import SERVICES
from tests.deploy.api_server import ApiServer
from tests.deploy.rendering import DEPLOY

PROGRAM = Path(sys.prefix) / "bin" / "juicefs-csi-nats-auth"
OVERLAY = DEPLOY / "overlays" / "mount-pod"

pytestmark = pytest.mark.timeout(180)  # the first test waits until the server is up


@pytest.fixture(scope="module")
def deployed(api: ApiServer) -> Iterator[ApiServer]:
    made = api.kubectl("apply", "-k", OVERLAY)
    assert made.returncode == 0, made.stderr
    yield api
    api.kubectl("delete", "--wait=false", "-k", OVERLAY)


@pytest.fixture(autouse=True)
def without(deployed: ApiServer) -> None:
    """No Secret is left of the test before."""
    deployed.kubectl("delete", "secret", "-n", "kube-system", "juicefs-csi-nats-auth", "--ignore-not-found")


def run(api: ApiServer, account: Path, *, name: str = "juicefs-csi-nats-sa") -> subprocess.CompletedProcess[str]:
    """As in a pod of that service account."""
    token = api.kubectl("create", "token", "-n", "kube-system", name).stdout
    for key, text in {"token": token, "ca.crt": api.authority, "namespace": "kube-system"}.items():
        (account / key).write_text(text)
    return subprocess.run(
        [PROGRAM, "--account", account],
        env={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def words(api: ApiServer) -> dict[str, str]:
    found = api.kubectl("get", "secret", "-n", "kube-system", "juicefs-csi-nats-auth", "-o", "json")
    data: dict[str, str] = orjson.loads(found.stdout)["data"]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


def test_each_service_gets_a_password(deployed: ApiServer, tmp_path: Path) -> None:
    """Of its own, long, and told to nobody."""
    finished = run(deployed, tmp_path)
    found = words(deployed)

    assert finished.returncode == 0, finished.stderr
    assert sorted(found) == sorted(SERVICES)
    assert len(set(found.values())) == len(SERVICES)
    assert all(len(word) > 32 and word not in finished.stdout + finished.stderr for word in found.values())


def test_passwords_that_are_there_stay(deployed: ApiServer, tmp_path: Path) -> None:
    """NATS is started again and again."""
    run(deployed, tmp_path)
    before = words(deployed)
    finished = run(deployed, tmp_path)

    assert finished.returncode == 0, finished.stderr
    assert words(deployed) == before


def test_another_account_is_refused(deployed: ApiServer, tmp_path: Path) -> None:
    """And says what was refused, in one line."""
    finished = run(deployed, tmp_path, name="juicefs-csi-node-sa")

    assert finished.returncode == 1
    assert "refuses to create Secret kube-system/juicefs-csi-nats-auth: 403" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_an_api_server_that_is_away_is_named(tmp_path: Path) -> None:
    away = ApiServer(tmp_path)
    (tmp_path / "apiserver.crt").write_text("")
    finished = run(away, tmp_path)

    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
