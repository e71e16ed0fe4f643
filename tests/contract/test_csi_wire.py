"""Our CSI proto is the published one, as far as it goes (CSI spec, csi.proto of v1.12.0)."""

import pytest

from tests.contract.descriptors import ROOT, Wire, published

SPEC = "github.com/container-storage-interface/spec@v1.12.0"
OURS = Wire(ROOT / "shared" / "proto" / "csi.proto")

pytestmark = pytest.mark.timeout(300)  # the first run fetches the module, and perhaps Go itself


@pytest.fixture(scope="module")
def spec() -> Wire:
    """The published contract."""
    return Wire(published(SPEC, "csi.proto"))


@pytest.mark.parametrize("message", OURS.messages)
def test_message_has_the_published_fields(message: str, spec: Wire) -> None:
    """A message that we use has every published field, with its number, type, label and oneof, and no other."""
    assert OURS.messages[message] == spec.messages[message]


@pytest.mark.parametrize("enum", OURS.enums)
def test_enum_has_the_published_values(enum: str, spec: Wire) -> None:
    """An enum that we use has every published value, with its number, and no other."""
    assert OURS.enums[enum] == spec.enums[enum]


@pytest.mark.parametrize("path", OURS.calls)
def test_call_has_the_published_types(path: str, spec: Wire) -> None:
    """A call that we serve takes and returns the published messages on the published path."""
    assert OURS.calls[path] == spec.calls[path]
