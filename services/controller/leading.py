"""What the one controller does that holds the Lease: provision, reclaim and expand, for the whole cluster."""

import asyncio
import socket
from dataclasses import dataclass

import structlog

from services.controller.cluster import Cluster
from services.controller.credentials import Credentials
from services.controller.provisioner import Provisioner
from services.controller.reclaimer import Reclaimer
from services.controller.resizer import Resizer
from services.controller.store import Store
from services.controller.volumes import Volumes
from shared.errors import NotReady
from shared.events import Say
from shared.identity import DRIVER_NAME
from shared.kubeconfig import own_namespace
from shared.kubernetes import Kubernetes
from shared.lease import Lease
from shared.metrics import Metrics
from shared.recorder import Recorder

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """Which of the two are wanted, and as whom."""

    provisions: bool
    resizes: bool
    workers: int = 100
    namespace: str = ""
    identity: str = ""
    kubeconfig: str = ""
    driver: str = DRIVER_NAME


async def run(duties: Duties, *, volumes: Volumes, metrics: Metrics, say: Say) -> None:
    """Until cancelled: wait for the Lease, work while it is held, wait again."""
    identity = duties.identity or socket.gethostname()
    async with Kubernetes.connect(kubeconfig=duties.kubeconfig) as api, asyncio.TaskGroup() as tasks:
        recorder = Recorder(api, component=duties.driver, host=identity)
        tasks.create_task(recorder.run(), name="events")
        lease = Lease(api, name=duties.driver, namespace=duties.namespace or own_namespace(), identity=identity)

        async def work() -> None:
            _log.info("leading", identity=identity)
            cluster = Cluster(api, recorder=recorder, driver=duties.driver)
            store = Store(volumes=volumes, credentials=Credentials(api), say=say)
            await serve(cluster, store, duties, metrics=metrics)

        while True:
            try:
                await lease.lead(work)
            except NotReady as error:
                _log.warning("leading no more", cause=str(error))


async def serve(cluster: Cluster, store: Store, duties: Duties, *, metrics: Metrics) -> None:
    """Nothing is done before everything is known."""
    works: list[Reclaimer | Provisioner | Resizer] = []
    if duties.provisions:
        works.append(Reclaimer(cluster, store, workers=duties.workers))
        works.append(Provisioner(cluster, store, metrics=metrics, workers=duties.workers))
    if duties.resizes:
        works.append(Resizer(cluster, store, workers=duties.workers))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cluster.run(), name="watches")
        await cluster.synced()
        for one in works:
            tasks.create_task(one.run(), name=type(one).__name__.lower())
