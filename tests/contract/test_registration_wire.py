"""Our plugin registration proto is the published one (k8s.io/kubelet, pluginregistration v1)."""

import pytest

from tests.contract.descriptors import ROOT, Wire, published

KUBELET = "k8s.io/kubelet@v0.35.4"
OURS = Wire(ROOT / "shared" / "proto" / "registration.proto")

pytestmark = pytest.mark.timeout(300)  # the first run fetches the module, and perhaps Go itself


@pytest.fixture(scope="module")
def kubelet() -> Wire:
    """The published contract."""
    return Wire(published(KUBELET, "pkg/apis/pluginregistration/v1/api.proto"))


def test_messages_have_the_published_fields(kubelet: Wire) -> None:
    """All of its messages, with every field's number and type, and no other."""
    assert OURS.messages == kubelet.messages


def test_calls_have_the_published_paths(kubelet: Wire) -> None:
    """Both calls, on the published path, which has no version in it."""
    assert OURS.calls == kubelet.calls
