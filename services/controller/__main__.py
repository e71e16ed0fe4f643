"""The controller service: what meets what."""

import argparse
import os
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
from shared.events import Say
from shared.identity import VERSION, Identity
from shared.juicefs import Juicefs

DRAIN: Final = 20.0  # seconds for the calls that run when the service is told to stop


async def serve(program: app.App) -> None:
    """Until told to stop; then answer what was asked before."""
    juicefs = await Juicefs.probe(Path(shutil.which(program.options.juicefs) or program.options.juicefs))
    bus = Bus(url=program.nats_url, service="controller", metrics=program.metrics)
    gateways = Gateways(juicefs)
    volumes = Volumes(juicefs=juicefs, gateways=gateways)
    service = ControllerService(volumes=volumes, say=bus.say)
    endpoint = Endpoint(program.options.endpoint, [Identity(is_ready=lambda: True), service], metrics=program.metrics)
    program.ready_when("csi", lambda: None if endpoint.serving.is_set() else "the CSI socket is not served")
    program.background(bus.run(), name="bus")
    program.background(endpoint.run(), name="csi")
    if program.options.provisioner or program.options.resizer:
        lead(program, volumes, bus.say)
    bus.say(ServiceStarted(version=VERSION))
    try:
        await program.stopping.wait()
        bus.say(ServiceStopping())
        await endpoint.drain(DRAIN)
    finally:
        await gateways.close()


def lead(program: app.App, volumes: Volumes, say: Say) -> None:
    """Serve claims too, on the one controller of several that holds the Lease."""
    from services.controller import leading  # noqa: PLC0415 - a Kubernetes client takes memory, so only who needs it

    options = program.options
    duties = leading.Duties(
        provisions=options.provisioner,
        resizes=options.resizer,
        workers=options.workers,
        namespace=options.namespace,
        identity=options.identity,
        kubeconfig=options.kubeconfig,
    )
    program.background(leading.run(duties, volumes=volumes, metrics=program.metrics, say=say), name="claims")


def main() -> int:
    """Console script juicefs-csi-controller."""
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-controller", description="CSI Controller: makes, expands and deletes JuiceFS volumes."
    )
    parser.add_argument("--endpoint", default="unix:///csi/controller.sock", help="CSI socket (%(default)s)")
    parser.add_argument("--juicefs", default="juicefs", metavar="FILE", help="the client's program (%(default)s)")
    claims = parser.add_argument_group("claims", "what Kubernetes' official sidecars do otherwise")
    claims.add_argument("--provisioner", action="store_true", help="make and delete the volumes of claims")
    claims.add_argument("--resizer", action="store_true", help="expand the volumes of claims")
    claims.add_argument(
        "--workers",
        type=_count,
        default=os.environ.get("PROVISION_WORKER_THREADS") or "100",
        metavar="N",
        help="how many at once; PROVISION_WORKER_THREADS in the environment sets it too (%(default)s)",
    )
    claims.add_argument("--namespace", default="", help="of the Lease (the service account's, else kube-system)")
    claims.add_argument("--identity", default="", help="who holds the Lease (the host's name)")
    claims.add_argument("--kubeconfig", default="", metavar="FILE", help="how to reach Kubernetes from outside")
    return app.run("controller", serve, parser)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one")
    return count


if __name__ == "__main__":
    sys.exit(main())
