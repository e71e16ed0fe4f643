"""The mountpod service: what meets what."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from services.mountpod.node import NodeService
from services.mountpod.processes import Processes
from services.mountpod.reconcile import Reconcile
from services.mountpod.service import MountpodService
from shared import app, mounter
from shared.api.juicefs.v1 import ServiceStarted, ServiceStopping
from shared.bus import Bus
from shared.errors import InvalidRequest, NotReady
from shared.identity import VERSION
from shared.juicefs import Juicefs
from shared.layout import Layout
from shared.mounttable import MountTable
from shared.pod_settings import PodSettings

_FUSE: Final = Path("/dev/fuse")


async def serve(program: app.App) -> None:
    """Until told to stop; the clients go on.

    Raises:
        DriverError: one line that says which option or privilege is missing.
    """
    is_pods = program.options.runtime == "pods"
    if not (program.options.mount_image if is_pods else program.options.node):
        raise InvalidRequest("--mount-image is required for pods" if is_pods else "--node-id is required")
    bus = Bus(url=program.nats_url, service="mountpod", node=program.options.node, metrics=program.metrics)
    program.ready_when("nats", lambda: None if bus.is_connected else "NATS is away: no client can be asked for")
    if is_pods:
        serve_pods(program, bus)
    else:
        await serve_processes(program, bus)
        bus.say(ServiceStarted(version=VERSION))
    await program.stopping.wait()
    bus.say(ServiceStopping())


async def serve_processes(program: app.App, bus: Bus) -> None:
    """The clients of this machine."""
    options = program.options
    if not os.access(_FUSE, os.R_OK | os.W_OK):
        raise NotReady(f"clients need {_FUSE}: load the module fuse, give the container the device, and run as root")
    mounter.require_privilege()
    juicefs = await Juicefs.probe(Path(shutil.which(options.juicefs) or options.juicefs))
    layout = Layout(mount_root=Path(options.mount_root).resolve(), run=Path(options.run_directory))
    table = MountTable()
    node = NodeService(bus=bus, node=options.node)
    runtime = Processes(layout=layout, juicefs=juicefs, table=table, bus=bus, node=node)
    reconcile = Reconcile(runtime=runtime, node=node)
    MountpodService(runtime=runtime, reconcile=reconcile, bus=bus, node=options.node).start()
    program.background(table.run(), name="mount table")
    program.background(runtime.run(), name="clients")
    program.background(bus.run(), name="bus")
    program.background(reconcile.run(), name="reconcile")


def serve_pods(program: app.App, bus: Bus) -> None:
    """The clients of all nodes of a cluster."""
    from services.mountpod import leading  # noqa: PLC0415 - a Kubernetes client takes memory, so only who needs it

    options = program.options
    missing: list[str | None] = ["Kubernetes has not answered yet"]
    program.ready_when("kubernetes", lambda: missing[0])

    def standing(what: str | None) -> None:
        missing[0] = what

    duties = leading.Duties(
        defaults=PodSettings(image=options.mount_image, service_account=options.mount_service_account),
        layout=Layout(mount_root=Path(options.mount_root), run=Path(options.run_directory)),
        configuration=Path(options.config) if options.config else None,
        namespace=options.namespace,
        identity=options.identity,
        kubeconfig=options.kubeconfig,
    )
    program.background(bus.run(), name="bus")
    program.background(leading.run(duties, bus=bus, standing=standing), name="pods")


def main() -> int:
    """Console script juicefs-csi-mountpod."""
    layout = Layout()
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-mountpod",
        description="Starts, watches, replaces and removes the JuiceFS clients of a machine, or of a cluster.",
    )
    parser.add_argument(
        "--runtime", choices=["processes", "pods"], default="processes", help="what a client is (%(default)s)"
    )
    parser.add_argument("--mount-root", default=str(layout.mount_root), metavar="DIR", help="of clients (%(default)s)")
    parser.add_argument("--run-directory", default=str(layout.run), metavar="DIR", help="a tmpfs (%(default)s)")
    processes = parser.add_argument_group("processes")
    processes.add_argument("--node-id", dest="node", default="", metavar="NAME", help="this machine's name (required)")
    processes.add_argument("--juicefs", default="juicefs", metavar="FILE", help="the client's program (%(default)s)")
    pods = parser.add_argument_group("pods", "directories are those of the nodes")
    pods.add_argument("--mount-image", default="", metavar="IMAGE", help="of clients (required)")
    pods.add_argument("--mount-service-account", default="juicefs-csi-mount-sa", metavar="NAME", help="(%(default)s)")
    pods.add_argument("--config", default="", metavar="FILE", help="of the ConfigMap juicefs-csi-driver-config")
    pods.add_argument("--namespace", default="", help="of clients (the service account's, else kube-system)")
    pods.add_argument("--identity", default="", help="who holds the Lease (the host's name)")
    pods.add_argument("--kubeconfig", default="", metavar="FILE", help="how to reach Kubernetes from outside")
    return app.run("mountpod", serve, parser)


if __name__ == "__main__":
    sys.exit(main())
