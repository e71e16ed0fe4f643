"""What the runtimes of all nodes share."""

from dataclasses import dataclass

from services.mountpod.configured import ConfigurationFile
from services.mountpod.notices import Notices
from services.mountpod.planner import Planner
from services.mountpod.pod_index import PodIndex
from services.mountpod.pod_maker import PodMaker
from shared.bus import Bus


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The parts that know no node."""

    bus: Bus
    configuration: ConfigurationFile
    planner: Planner
    index: PodIndex
    maker: PodMaker
    notices: Notices
