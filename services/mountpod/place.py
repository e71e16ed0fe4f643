"""Where a mount is, and what it shares there."""

from dataclasses import dataclass

from services.mountpod.cluster import Cluster
from services.mountpod.failures import Failures
from services.mountpod.node import NodeService
from services.mountpod.references import References


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the mounts of one node share. `failures` outlive them: the next try is another mount's."""

    node: str
    cluster: Cluster
    service: NodeService
    references: References
    failures: Failures
