import re

import pytest

from shared.api.csi.v1 import (
    GetPluginCapabilitiesRequest,
    GetPluginInfoRequest,
    PluginCapabilityServiceType,
    PluginCapabilityVolumeExpansionType,
    ProbeRequest,
)
from shared.identity import Identity


async def test_who_it_is() -> None:
    """The name that StorageClasses and PVs have, and the package's version."""
    told = await Identity(is_ready=lambda: True).get_plugin_info(GetPluginInfoRequest())

    assert told.name == "csi.juicefs.com"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", told.vendor_version)


async def test_another_name() -> None:
    """For two drivers in one cluster."""
    identity = Identity(is_ready=lambda: True, driver_name="juicefs.example.com")

    assert (await identity.get_plugin_info(GetPluginInfoRequest())).name == "juicefs.example.com"


@pytest.mark.parametrize("has_controller", [True, False])
async def test_what_it_can(has_controller: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Volumes grow while they are published; a controller is told of where there is one."""
    identity = Identity(is_ready=lambda: True, has_controller=has_controller)
    told = (await identity.get_plugin_capabilities(GetPluginCapabilitiesRequest())).capabilities

    services = [one.service.type for one in told if one.service]
    growth = [one.volume_expansion.type for one in told if one.volume_expansion]
    assert services == ([PluginCapabilityServiceType.CONTROLLER_SERVICE] if has_controller else [])
    assert growth == [PluginCapabilityVolumeExpansionType.ONLINE]


@pytest.mark.parametrize("is_ready", [True, False])
async def test_whether_it_works(is_ready: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Probe asks the service, each time."""
    assert (await Identity(is_ready=lambda: is_ready).probe(ProbeRequest())).ready is is_ready
