"""The pods runtime: what meets what, on the one mountpod of several that holds the Lease."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.mountpod.cluster import Cluster
from services.mountpod.configured import ConfigurationFile
from services.mountpod.fleet import Fleet
from services.mountpod.notices import Notices
from services.mountpod.planner import Planner, Volumes
from services.mountpod.pod_index import PodIndex
from services.mountpod.pod_maker import PodMaker
from shared.api.juicefs.v1 import EnsureReply, EnsureRequest, RestartRequest, ServiceStarted
from shared.bus import Bus, End
from shared.errors import NotReady
from shared.identity import DRIVER_NAME, VERSION
from shared.kubeconfig import own_namespace
from shared.kubernetes import Kubernetes
from shared.layout import Layout
from shared.lease import Lease
from shared.pod_patch import Configuration
from shared.pod_settings import PodSettings
from shared.recorder import Recorder

_AGAIN: Final = 1.0
LEASE: Final = "mountpod.juicefs.com"


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """`defaults` are of every mount pod; `layout` has the paths of the hosts."""

    defaults: PodSettings
    layout: Layout
    configuration: Path | None = None
    namespace: str = ""
    identity: str = ""
    kubeconfig: str = ""


async def run(duties: Duties, *, bus: Bus, standing: Callable[[str | None], None]) -> None:
    """Wait for the Lease, and serve all nodes while it is ours; `standing` is told what is missed, or None.

    Raises:
        NotReady: the Lease was lost. InvalidRequest: the configuration can't be understood at the start.
    """
    namespace = duties.namespace or own_namespace()
    async with Kubernetes.connect(kubeconfig=duties.kubeconfig) as api:
        fleet, superseded = Fleet(api), asyncio.Event()
        planner = Planner(
            api,
            volumes=Volumes(api, driver=DRIVER_NAME),
            defaults=duties.defaults,
            node_labels=fleet.labels,
            namespace=namespace,
        )

        def configure(configuration: Configuration) -> None:
            planner.configuration = configuration
            superseded.set()
            _log.info("configuration taken", patches=len(configuration.patches))

        file = ConfigurationFile(duties.configuration, configure)
        file.read()
        superseded.set()  # it may have changed while nobody led
        index = PodIndex(api, namespace=namespace)
        recorder = Recorder(api, component="juicefs-csi-mountpod")
        cluster = Cluster(
            bus=bus,
            configuration=file,
            planner=planner,
            index=index,
            maker=PodMaker(api, namespace=namespace, index=index, layout=duties.layout),
            notices=Notices(api, recorder),
        )
        lease = Lease(api, name=LEASE, namespace=namespace, identity=duties.identity or socket.gethostname())
        async with asyncio.TaskGroup() as tasks:
            # The standby knows everything, too, so that it takes over at once.
            for part in (planner.volumes, index, recorder, file):
                tasks.create_task(part.run())
            tasks.create_task(fleet.run_nodes())
            standing(None)
            serve = partial(_serve, fleet, cluster, superseded=superseded, standing=standing)
            await _lead(lease, serve, refuse=partial(_refuse, fleet, bus))


async def _lead(lease: Lease, serve: Callable[[], Awaitable[None]], *, refuse: Callable[[NotReady], list[End]]) -> None:
    """Serve while the Lease is ours.

    When it is lost because the API server is away, nobody else has it: we stay, so that who asks hears what is missing.

    Raises:
        NotReady: somebody else leads by now. The program starts anew, as the one that waits.
    """
    follows, refusals = True, ExitStack()

    async def serve_again() -> None:
        refusals.close()
        await serve()

    while True:
        try:
            await lease.lead(serve_again, follows=follows)
        except NotReady as error:
            if lease.is_anothers:
                raise
            _log.warning("not leading while the API server is away", cause=str(error))
            follows = False
            refusals.close()
            for end in refuse(error):
                refusals.callback(end)
            await asyncio.sleep(_AGAIN)


def _refuse(fleet: Fleet, bus: Bus, why: NotReady) -> list[End]:
    """Say why to whoever asks, for whatever node."""

    async def refuse(_: EnsureRequest | RestartRequest) -> EnsureReply:
        raise why.with_traceback(None)  # it is raised again and again, and would keep every frame

    kinds: dict[str, type[EnsureRequest | RestartRequest]] = {"Ensure": EnsureRequest, "Restart": RestartRequest}
    return [
        bus.serve(f"juicefs.rpc.mountpod.{node}.{verb}", kind, refuse, queue="mountpod")
        for node in fleet.nodes()
        for verb, kind in kinds.items()
    ]


async def _serve(
    fleet: Fleet, cluster: Cluster, *, superseded: asyncio.Event, standing: Callable[[str | None], None]
) -> None:
    standing("what Kubernetes holds is not known yet")
    for synced in (cluster.planner.volumes.synced, cluster.index.synced, fleet.synced):
        await synced.wait()
    standing(None)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fleet.run(cluster))
        tasks.create_task(_supersede(fleet, superseded))
        cluster.bus.say(ServiceStarted(version=VERSION))


async def _supersede(fleet: Fleet, superseded: asyncio.Event) -> None:
    """Tell the nodes of each new configuration."""
    while await superseded.wait():
        superseded.clear()
        fleet.supersede()
