"""The node service: what meets what."""

import argparse
import sys
from pathlib import Path
from typing import Final

from services.node.bindings import Bindings
from services.node.clients import Clients
from services.node.heal import Healer
from services.node.mounts import Mounts
from services.node.probe import Probes
from services.node.registration import KUBELET_ENDPOINT, Registration
from services.node.service import NodeService
from services.node.targets import Targets
from shared import app, mounter
from shared.api.juicefs.v1 import (
    CloseReply,
    CloseRequest,
    PrepareReply,
    PrepareRequest,
    ReleaseReply,
    ReleaseRequest,
    ReportReply,
    ReportRequest,
    ServiceStarted,
    ServiceStopping,
)
from shared.bus import Bus
from shared.csi import Endpoint
from shared.errors import DriverError
from shared.identity import VERSION, Identity
from shared.layout import Layout
from shared.mounttable import MountTable

DRAIN: Final = 20.0  # seconds for the calls that run when the service is told to stop


def answer_mountpod(bus: Bus, mounts: Mounts, *, node: str) -> None:
    """What mountpod may ask of this node."""

    async def prepare(request: PrepareRequest) -> PrepareReply:
        asked = request.time_ms / 1000
        await mounts.prepare(request.mount, keep=request.keep, identity=request.identity, asked=asked)
        return PrepareReply()

    async def release(request: ReleaseRequest) -> ReleaseReply:
        await mounts.release(request.mount)
        return ReleaseReply()

    async def close(request: CloseRequest) -> CloseReply:
        return CloseReply(in_use=await mounts.close(request.mount))

    async def report(_: ReportRequest) -> ReportReply:
        return ReportReply(mounts=mounts.report())

    subject = f"juicefs.rpc.node.{node}"
    bus.serve(f"{subject}.Prepare", PrepareRequest, prepare)
    bus.serve(f"{subject}.Release", ReleaseRequest, release)
    bus.serve(f"{subject}.Close", CloseRequest, close)
    bus.serve(f"{subject}.Report", ReportRequest, report)


async def serve(program: app.App) -> None:
    """Until told to stop; then answer what was asked before."""
    mounter.require_privilege()
    if not Path(program.options.pod_directory).is_dir():
        raise DriverError(
            f"--pod-directory {program.options.pod_directory} is no directory: is kubelet's root elsewhere?"
        )
    layout = Layout(mount_root=Path(program.options.mount_root).resolve(), run=Path(program.options.run_directory))
    try:
        layout.clients.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DriverError(f"--run-directory {layout.run} can't be used: {error.strerror}") from None
    table = MountTable()
    with mounter.fuse_control(table, layout.run / "fusectl") as control:
        await assemble(program, layout=layout, table=table, probes=Probes(control))


async def assemble(program: app.App, *, layout: Layout, table: MountTable, probes: Probes) -> None:
    """Put the parts together, and run them."""
    options, metrics = program.options, program.metrics
    bus = Bus(url=program.nats_url, service="node", node=options.node, metrics=metrics)
    bindings = Bindings(layout.targets, table.read())
    mounts = Mounts(layout=layout, table=table, bindings=bindings, probes=probes, say=bus.say, metrics=metrics)
    clients = Clients(
        layout=layout,
        table=table,
        mounts=mounts,
        probes=probes,
        bus=bus,
        node=options.node,
        leaves_credentials=options.runtime == "processes",
    )
    targets = Targets(
        table=table,
        mounts=mounts,
        bindings=bindings,
        clients=clients,
        probes=probes,
        metrics=metrics,
    )
    healer = Healer(table=table, mounts=mounts, targets=targets, grace=options.grace, are_copied=options.copied_targets)
    service = NodeService(
        node=options.node, pods=options.pod_directory, table=table, targets=targets, probes=probes, metrics=metrics
    )
    endpoint = Endpoint(options.endpoint, [Identity(is_ready=lambda: True), service], metrics=metrics)
    answer_mountpod(bus, mounts, node=options.node)
    for hear in (clients.hear, mounts.hear):
        bus.on_event(f"juicefs.event.mountpod.{options.node}.>", hear)
        bus.on_event("juicefs.event.mountpod._.ServiceStarted", hear)
    metrics.mounts.set_function(lambda: len(mounts.present()))
    program.ready_when("csi", lambda: None if endpoint.serving.is_set() else "the CSI socket is not served")

    program.background(bus.run(), name="bus")
    program.background(table.run(), name="mount table")
    program.background(mounts.run(), name="mounts")
    await mounts.restored.wait()
    program.background(healer.run(), name="healer")
    program.background(endpoint.run(), name="csi")
    if options.registration:
        registration = Registration(
            directory=Path(options.registration), endpoint=options.kubelet_endpoint, metrics=metrics
        )
        program.ready_when("kubelet", lambda: registration.missing)
        program.background(registration.run(serving=endpoint.serving), name="registration")
    bus.say(ServiceStarted(version=VERSION))
    await program.stopping.wait()
    bus.say(ServiceStopping())
    await endpoint.drain(DRAIN)


def main() -> int:
    """Console script juicefs-csi-node."""
    parser = argparse.ArgumentParser(prog="juicefs-csi-node", description="CSI Node: binds JuiceFS mounts at targets.")
    parser.add_argument("--node-id", dest="node", required=True, metavar="NAME", help="this machine's name")
    parser.add_argument("--endpoint", default="unix:///csi/csi.sock", help="CSI socket (%(default)s)")
    parser.add_argument(
        "--pod-directory",
        default="/var/lib/kubelet",
        metavar="DIR",
        help="targets lie below it: kubelet's root directory (%(default)s)",
    )
    parser.add_argument(
        "--mount-root", default=str(Layout().mount_root), metavar="DIR", help="of clients (%(default)s)"
    )
    parser.add_argument("--run-directory", default=str(Layout().run), metavar="DIR", help="a tmpfs (%(default)s)")
    parser.add_argument(
        "--runtime",
        choices=["processes", "pods"],
        default="processes",
        help="mountpod's: to processes beside it the node hands the secrets of a publish on (%(default)s)",
    )
    parser.add_argument(
        "--copied-targets",
        action="store_true",
        help="workloads have the targets in mount namespaces of their own, as containers do: a target that has to be "
        "bound anew keeps the dead mount beneath the living one, since they see only what is mounted on it",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long calls wait for a dead client's successor before they fail (%(default)s)",
    )
    parser.add_argument(
        "--registration",
        default="",
        metavar="DIR",
        help="register with kubelet there: its plugins_registry, as seen from here (default: don't)",
    )
    parser.add_argument(
        "--kubelet-endpoint",
        default=KUBELET_ENDPOINT,
        metavar="PATH",
        help="the CSI socket as kubelet sees it (%(default)s)",
    )
    return app.run("node", serve, parser)


if __name__ == "__main__":
    sys.exit(main())
