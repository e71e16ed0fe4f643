"""The controller service: what meets what."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from services.controller.gateway import Gateways
from services.controller.service import ControllerService
from services.controller.volumes import Volumes
from shared import app
from shared.api.juicefs.v1 import ServiceStarted, ServiceStopping
from shared.bus import Bus
from shared.csi import Endpoint
from shared.identity import VERSION, Identity
from shared.juicefs import Juicefs

DRAIN: Final = 20.0  # seconds for the calls that run when the service is told to stop


async def serve(program: app.App) -> None:
    """Until told to stop; then answer what was asked before."""
    juicefs = await Juicefs.probe(Path(shutil.which(program.options.juicefs) or program.options.juicefs))
    bus = Bus(url=program.nats_url, service="controller", metrics=program.metrics)
    gateways = Gateways(juicefs)
    service = ControllerService(volumes=Volumes(juicefs=juicefs, gateways=gateways), say=bus.say)
    endpoint = Endpoint(program.options.endpoint, [Identity(is_ready=lambda: True), service], metrics=program.metrics)
    program.ready_when("csi", lambda: None if endpoint.serving.is_set() else "the CSI socket is not served")
    program.background(bus.run(), name="bus")
    program.background(endpoint.run(), name="csi")
    bus.say(ServiceStarted(version=VERSION))
    try:
        await program.stopping.wait()
        bus.say(ServiceStopping())
        await endpoint.drain(DRAIN)
    finally:
        await gateways.close()


def main() -> int:
    """Console script juicefs-csi-controller."""
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-controller", description="CSI Controller: makes, expands and deletes JuiceFS volumes."
    )
    parser.add_argument("--endpoint", default="unix:///csi/controller.sock", help="CSI socket (%(default)s)")
    parser.add_argument("--juicefs", default="juicefs", metavar="FILE", help="the client's program (%(default)s)")
    return app.run("controller", serve, parser)


if __name__ == "__main__":
    sys.exit(main())
