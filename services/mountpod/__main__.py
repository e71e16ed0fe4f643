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
from shared.errors import NotReady
from shared.identity import VERSION
from shared.juicefs import Juicefs
from shared.layout import Layout
from shared.mounttable import MountTable

_FUSE: Final = Path("/dev/fuse")


async def serve(program: app.App) -> None:
    """Until told to stop; the clients go on."""
    options = program.options
    if not os.access(_FUSE, os.R_OK | os.W_OK):
        raise NotReady(f"clients need {_FUSE}: load the module fuse, give the container the device, and run as root")
    mounter.require_privilege()
    juicefs = await Juicefs.probe(Path(shutil.which(options.juicefs) or options.juicefs))
    layout = Layout(mount_root=Path(options.mount_root).resolve(), run=Path(options.run_directory))
    table = MountTable()
    bus = Bus(url=program.nats_url, service="mountpod", node=options.node, metrics=program.metrics)
    node = NodeService(bus=bus, node=options.node)
    runtime = Processes(layout=layout, juicefs=juicefs, table=table, bus=bus, node=node)
    reconcile = Reconcile(runtime=runtime, node=node)
    MountpodService(runtime=runtime, reconcile=reconcile, bus=bus, node=options.node).start()
    program.ready_when("nats", lambda: None if bus.is_connected else "NATS is away: no client can be asked for")
    program.background(table.run(), name="mount table")
    program.background(runtime.run(), name="clients")
    program.background(bus.run(), name="bus")
    program.background(reconcile.run(), name="reconcile")
    bus.say(ServiceStarted(version=VERSION))
    await program.stopping.wait()
    bus.say(ServiceStopping())


def main() -> int:
    """Console script juicefs-csi-mountpod."""
    layout = Layout()
    parser = argparse.ArgumentParser(
        prog="juicefs-csi-mountpod",
        description="Starts, watches, replaces and removes the JuiceFS clients of a machine.",
    )
    parser.add_argument("--node-id", dest="node", required=True, metavar="NAME", help="this machine's name")
    parser.add_argument("--runtime", choices=["processes"], default="processes", help="what a client is (%(default)s)")
    parser.add_argument("--juicefs", default="juicefs", metavar="FILE", help="the client's program (%(default)s)")
    parser.add_argument("--mount-root", default=str(layout.mount_root), metavar="DIR", help="of clients (%(default)s)")
    parser.add_argument("--run-directory", default=str(layout.run), metavar="DIR", help="a tmpfs (%(default)s)")
    return app.run("mountpod", serve, parser)


if __name__ == "__main__":
    sys.exit(main())
