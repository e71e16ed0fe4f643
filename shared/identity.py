"""CSI Identity: who this plugin is, and whether it can work."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from shared.api.csi.v1 import (
    GetPluginCapabilitiesRequest,
    GetPluginCapabilitiesResponse,
    GetPluginInfoRequest,
    GetPluginInfoResponse,
    IdentityBase,
    PluginCapability,
    PluginCapabilityService,
    PluginCapabilityServiceType,
    PluginCapabilityVolumeExpansion,
    PluginCapabilityVolumeExpansionType,
    ProbeRequest,
    ProbeResponse,
)

DRIVER_NAME: Final = "csi.juicefs.com"
VERSION: Final = version("juicefs-csi")


class Identity(IdentityBase):
    """`is_ready` must answer at once.

    `has_controller` tells of the plugin as a whole, not of the socket: CSI spec, GetPluginCapabilities, wants the same
    answer from all of its instances. It is False where no controller is deployed.
    """

    def __init__(
        self, *, is_ready: Callable[[], bool], has_controller: bool = True, driver_name: str = DRIVER_NAME
    ) -> None:
        self._is_ready = is_ready
        self._has_controller = has_controller
        self._driver_name = driver_name

    async def get_plugin_info(self, message: GetPluginInfoRequest) -> GetPluginInfoResponse:
        return GetPluginInfoResponse(name=self._driver_name, vendor_version=VERSION)

    async def get_plugin_capabilities(self, message: GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse:
        controller = PluginCapability(
            service=PluginCapabilityService(type=PluginCapabilityServiceType.CONTROLLER_SERVICE)
        )
        online = PluginCapability(
            volume_expansion=PluginCapabilityVolumeExpansion(type=PluginCapabilityVolumeExpansionType.ONLINE)
        )
        return GetPluginCapabilitiesResponse(capabilities=[controller, online] if self._has_controller else [online])

    async def probe(self, message: ProbeRequest) -> ProbeResponse:
        return ProbeResponse(ready=self._is_ready())
