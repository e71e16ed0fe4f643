"""A service that can't work says why when it is started: one line, no traceback, exit code 1."""

import subprocess
from collections.abc import Iterator

import orjson
import pytest

from demo.driver import Driver, program

SERVICES = ("controller", "node", "mountpod")
WITHOUT_PRIVILEGE = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
# A /dev of its own that has everything but the FUSE device, seen by nobody else.
_DEV = 'mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"'
WITHOUT_FUSE = ["unshare", "--mount", "sh", "-c", _DEV, "sh"]


@pytest.fixture
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    base = tmp_path_factory.mktemp("w")
    driver = Driver(base=base)
    for directory in (driver.pods, driver.layout.mount_root, driver.layout.run):
        directory.mkdir(parents=True)
    yield driver
    assert driver.leftovers() == []


def cause(driver: Driver, service: str, *options: str, within: tuple[str, ...] = (), juicefs: str = "") -> str:
    """Why the service does not start. Later options win."""
    finished = subprocess.run(
        [*within, *driver.command(service), "--health-address", "127.0.0.1:0", *options],
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "JUICEFS_CSI_JUICEFS": juicefs or program("juicefs")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "Traceback" not in finished.stderr
    lines = [orjson.loads(line) for line in finished.stderr.splitlines()]
    causes = [line["cause"] for line in lines if line["level"] == "critical"]
    assert (finished.returncode, len(causes)) == (1, 1), finished.stderr
    return str(causes[0])


@pytest.mark.parametrize("service", SERVICES)
def test_a_malformed_nats_url(driver: Driver, service: str) -> None:
    assert "URL of NATS" in cause(driver, service, "--nats", "nats://127.0.0.1:port")


@pytest.mark.parametrize("service", SERVICES)
def test_a_nats_password_that_is_not_there(driver: Driver, service: str) -> None:
    assert "password of NATS" in cause(driver, service, "--nats-password-file", "/nonexistent")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "256.1.1.1:80"])
def test_a_health_address_that_is_none(driver: Driver, address: str) -> None:
    assert "--health-address" in cause(driver, "node", "--health-address", address)


@pytest.mark.parametrize("service", ["controller", "mountpod"])
def test_no_juicefs(driver: Driver, service: str) -> None:
    """Issue 3: no `juicefs` binary."""
    assert "juicefs binary" in cause(driver, service, juicefs="/nonexistent/juicefs")


@pytest.mark.parametrize("service", ["controller", "mountpod"])
def test_a_program_that_is_no_juicefs(driver: Driver, service: str) -> None:
    assert "not a JuiceFS client" in cause(driver, service, juicefs="/bin/true")


def test_no_fuse_device(driver: Driver) -> None:
    """Issue 3: no `/dev/fuse`."""
    assert "/dev/fuse" in cause(driver, "mountpod", within=tuple(WITHOUT_FUSE))


def test_no_privilege(driver: Driver) -> None:
    """Issue 3: no root; or root without the capability, which is what counts."""
    assert "CAP_SYS_ADMIN" in cause(driver, "node", within=tuple(WITHOUT_PRIVILEGE))


@pytest.mark.parametrize("directory", ["missing", "file"])
def test_no_pod_directory(driver: Driver, directory: str) -> None:
    (driver.base / "file").touch()
    assert "--pod-directory" in cause(driver, "node", "--pod-directory", str(driver.base / directory))


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "unix://", f"unix:///{'x' * 120}"])
def test_an_endpoint_that_is_no_socket_path(driver: Driver, endpoint: str) -> None:
    assert "CSI endpoint" in cause(driver, "node", "--endpoint", endpoint)


@pytest.mark.parametrize("service", ["controller", "node"])
def test_a_file_in_the_place_of_the_socket(driver: Driver, service: str) -> None:
    driver.socket(service).touch()
    assert "is no socket" in cause(driver, service)


def test_a_run_directory_that_cannot_be_made(driver: Driver) -> None:
    (driver.base / "file").touch()
    assert "--run-directory" in cause(driver, "node", f"--run-directory={driver.base / 'file' / 'run'}")
