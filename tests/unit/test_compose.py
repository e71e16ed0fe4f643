import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CAPABILITIES = {"node": {"SYS_ADMIN", "LINUX_IMMUTABLE", "DAC_READ_SEARCH"}, "mountpod": {"SYS_ADMIN"}}


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_is_privileged(name: str) -> None:
    """A container has no capability but those that mounting needs, gains none, and can't change its image."""
    service = SERVICES[name]
    assert not service.get("privileged")
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", ())) == CAPABILITIES.get(name, set())
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"]


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_a_target_of_the_dockerfile(name: str) -> None:
    """One target a service, in one Dockerfile, and `scripts/images` knows it."""
    assert SERVICES[name]["build"]["target"] == name
    assert re.search(rf"^FROM \S+ AS {name}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.search(rf"targets=\(.*\b{name}\b.*\)", (ROOT / "scripts/images").read_text())


def test_node_and_mountpod_share_their_directories() -> None:
    """What one of them mounts, binds or listens at, the other finds on the same path."""
    node, mountpod = set(SERVICES["node"]["volumes"]), set(SERVICES["mountpod"]["volumes"])
    assert {entry.split(":")[-1] for entry in node & mountpod} == {"rshared", "/run/juicefs-csi", "/tmp"}


def test_no_password_is_an_argument() -> None:
    """Everyone on the machine can read an argument."""
    for service in SERVICES.values():
        arguments = [*service.get("command", ()), *service.get("entrypoint", ())]
        assert not [argument for argument in arguments if "${REDIS_PASSWORD" in argument]


def test_both_generations_of_compose_accept_the_file() -> None:
    """Neither `version` (obsolete now) nor `name` (unknown to 1.29) stands at the top."""
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"services", "volumes"}
