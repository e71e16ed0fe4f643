import argparse
from pathlib import Path

import pytest

from shared import options
from shared.connection import Address
from shared.errors import NotReady


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="program")
    parser.add_argument("--node-id", dest="node", required=True)
    parser.add_argument("--grace", type=float, default=60.0)
    parser.add_argument("--log-level", choices=["debug", "info"], default="info")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-follow", dest="follow", action="store_false")
    parser.add_argument("--kind", action="append", default=[])
    options.add_nats(parser)
    return options.parse(parser, argv)


def test_every_option_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted as an argument would be, also one that is required."""
    for name, value in {"NODE_ID": "n1", "GRACE": "1.5", "JSON": "true", "NO_FOLLOW": "1", "KIND": "MountIdle"}.items():
        monkeypatch.setenv(f"JUICEFS_CSI_{name}", value)

    found = parse()

    assert (found.node, found.grace, found.json, found.follow, found.kind) == ("n1", 1.5, True, False, ["MountIdle"])


def test_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the environment; what is empty there counts as not set."""
    monkeypatch.setenv("JUICEFS_CSI_NODE_ID", "n1")
    monkeypatch.setenv("JUICEFS_CSI_GRACE", "")
    monkeypatch.setenv("JUICEFS_CSI_JSON", "false")

    found = parse("--node-id", "n2")

    assert (found.node, found.grace, found.json) == ("n2", 60.0, False)


@pytest.mark.parametrize("name", ["GRACE", "LOG_LEVEL", "JSON"])
def test_a_wrong_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As a wrong argument is, in a line that names it."""
    monkeypatch.setenv(f"JUICEFS_CSI_{name}", "loud")

    with pytest.raises(SystemExit):
        parse("--node-id", "n1")

    assert name.lower().replace("_", "-") in capsys.readouterr().err.lower().replace("_", "-")


@pytest.mark.parametrize("argument", ["--nats=nats://u:hunter2@h:1", "--node-id=redis://:hunter2@h"])
def test_a_password_in_an_argument_is_refused(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    """Everyone on the machine could read it; the line says what to do instead, and does not repeat it."""
    with pytest.raises(SystemExit):
        parse(argument)

    told = capsys.readouterr().err
    assert "JUICEFS_CSI_NATS_PASSWORD_FILE" in told
    assert "hunter2" not in told


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its password, since nobody else can read it there."""
    monkeypatch.setenv("JUICEFS_CSI_NATS_URL", "nats://u:hunter2@h:1")

    assert options.nats_url(parse("--node-id", "n1")) == "nats://u:hunter2@h:1"


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("nats://driver@h:1", ("driver", "p@ss/w:rd")),
        ("nats://h:1", ("p@ss/w:rd", None)),  # a token
        ("driver@h:1", ("driver", "p@ss/w:rd")),
        ("nats://driver@a:1,nats://b:2", ("driver", "p@ss/w:rd")),
    ],
)
def test_the_password_may_come_from_a_file(tmp_path: Path, url: str, credentials: tuple[str, str | None]) -> None:
    """As Kubernetes mounts Secrets; without a user it is a token."""
    (tmp_path / "password").write_text("p@ss/w:rd\n")

    parsed = parse("--node-id", "n1", "--nats", url, "--nats-password-file", str(tmp_path / "password"))
    found = Address.parse(options.nats_url(parsed))

    assert (found.user, found.password) == credentials


def test_a_password_file_that_is_missing(tmp_path: Path) -> None:
    """Said with its path."""
    parsed = parse("--node-id", "n1", "--nats-password-file", str(tmp_path / "none"))

    with pytest.raises(NotReady, match="none: No such file"):
        options.nats_url(parsed)
