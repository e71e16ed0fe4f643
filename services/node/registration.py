"""Makes the driver known to kubelet, which calls every socket that appears in its directory of plugins.

It answers what kubelet's plugin registration API v1 asks (`shared/proto/registration.proto`), as the official
node-driver-registrar does, under the same name. The socket is looked at now and then: where somebody removes it,
kubelet forgets the driver, and a new one brings it back.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from shared.api.pluginregistration import (
    InfoRequest,
    PluginInfo,
    RegistrationBase,
    RegistrationStatus,
    RegistrationStatusResponse,
)
from shared.csi import Endpoint
from shared.errors import InUse, NotReady
from shared.identity import DRIVER_NAME
from shared.metrics import Metrics

KUBELET_ENDPOINT: Final = f"/var/lib/kubelet/csi-plugins/{DRIVER_NAME}/csi.sock"
"""Where behaviour.md 0 has the CSI socket, as kubelet sees it."""
_LOOK: Final = 5.0  # seconds
_VERSIONS: Final = ["1.0.0"]  # of CSI: kubelet wants a release of 1.x, and asks for capabilities instead of more

_log = structlog.get_logger()


class Registration(RegistrationBase):
    """Registers the CSI socket `endpoint`, a path of kubelet's, in the directory of plugins, a path of ours."""

    def __init__(self, *, directory: Path, endpoint: str, metrics: Metrics, look: float = _LOOK) -> None:
        self._socket = directory / f"{DRIVER_NAME}-reg.sock"
        self._endpoint = endpoint
        self._metrics = metrics
        self._look = look
        self._missing: str | None = self._uncalled()

    @property
    def missing(self) -> str | None:
        """Why kubelet can't use the driver; None when it can."""
        return self._missing

    async def run(self, *, serving: asyncio.Event) -> None:
        """Be registered until cancelled, once the CSI socket is `serving`: kubelet calls it at once.

        Raises:
            NotReady: the directory of plugins is gone; it is a new one that a restarted container gets.
        """
        await serving.wait()
        while True:
            self._missing = self._uncalled()
            try:
                await self._offer()
            except InUse as error:  # the registrar of another driver of this name, or our predecessor
                self._missing = str(error)
                _log.warning("not registered with kubelet", cause=self._missing)
                await asyncio.sleep(self._look)
            except OSError as error:
                raise NotReady(f"--registration: no socket can be made at {self._socket}: {error.strerror}") from None

    async def _offer(self) -> None:
        """Serve one socket as long as it is where kubelet finds it."""
        endpoint = Endpoint(str(self._socket), [self], metrics=self._metrics)
        offering = asyncio.create_task(endpoint.run())
        try:
            while not offering.done():
                await asyncio.wait({offering}, timeout=self._look)
                if endpoint.serving.is_set() and not endpoint.is_in_place:
                    _log.warning("the registration socket was removed: making it again", socket=str(self._socket))
                    return
            offering.result()
        finally:
            while not offering.done():
                offering.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({offering})

    def _uncalled(self) -> str:
        return f"kubelet has not called {self._socket} yet: is it in kubelet's plugins_registry?"

    async def get_info(self, message: InfoRequest) -> PluginInfo:
        """What kubelet asks first."""
        return PluginInfo(
            type="CSIPlugin", name=DRIVER_NAME, endpoint=self._endpoint, supported_versions=list(_VERSIONS)
        )

    async def notify_registration_status(self, message: RegistrationStatus) -> RegistrationStatusResponse:
        """What came of it; kubelet tries again by itself."""
        if message.plugin_registered:
            self._missing = None
            _log.info("registered with kubelet", endpoint=self._endpoint)
        else:
            self._missing = f"kubelet refused the driver: {message.error or 'it says no reason'}"
            _log.error("kubelet refused the driver", cause=message.error, endpoint=self._endpoint)
        return RegistrationStatusResponse()
