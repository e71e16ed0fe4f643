"""What a service counts, for Prometheus: a registry of its own, so that two services fit into one process (tests).

The four names of behaviour.md 8.5 are exposed as dashboards know them: without the `_total` that counters get. They are
gauges here for that reason alone, and only ever go up.
"""

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one service. `node` becomes the label `node_name` of every one of them (behaviour.md 8.5)."""

    def __init__(self, *, node: str = "") -> None:
        self._node = node
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.rpc = Histogram(
            "juicefs_csi_rpc_seconds", "CSI calls", ["method", "code"], buckets=_SECONDS, registry=registry
        )
        self.publish_phase = Histogram(
            "juicefs_csi_publish_phase_seconds", "Parts of a publish", ["phase"], buckets=_SECONDS, registry=registry
        )
        self.mounts = Gauge("juicefs_csi_mounts", "JuiceFS mounts on this machine", registry=registry)
        self.heals = Counter("juicefs_csi_heals", "Mounts that were healed", ["how"], registry=registry)
        self.bus_reconnects = Counter("juicefs_csi_bus_reconnects", "Times NATS came back", registry=registry)
        self.bus_dropped = Counter(
            "juicefs_csi_bus_dropped_events", "Events dropped while NATS was away", registry=registry
        )
        self.loop_lag = Gauge("juicefs_csi_loop_lag_seconds", "Delay of the event loop's last timer", registry=registry)
        self.volume_errors = Gauge("juicefs_volume_errors", "Failed publishes", registry=registry)
        self.volume_del_errors = Gauge("juicefs_volume_del_errors", "Failed unpublishes", registry=registry)
        self.provision_errors = Gauge("juicefs_provision_errors", "Failed creations of volumes", registry=registry)
        self.failed = {
            "NodePublishVolume": self.volume_errors,
            "NodeUnpublishVolume": self.volume_del_errors,
            "CreateVolume": self.provision_errors,
        }
        self.path_health = Gauge(
            "juicefs_volume_path_health",
            "1 when the target answers, else 0",
            ["volume_id", "volume_path", "pod_uid"],
            registry=registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format, `CONTENT_TYPE`."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Every metric with the constant label: this object takes the registry's place when it is printed."""
        constant: dict[str, Any] = {"node_name": self._node} if self._node else {}
        for family in self.registry.collect():
            family.samples = [sample._replace(labels={**sample.labels, **constant}) for sample in family.samples]
            yield family
