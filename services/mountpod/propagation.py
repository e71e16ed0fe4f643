"""Which containers see that a volume is mounted anew (https://kubernetes.io/docs/concepts/storage/volumes/)."""

from collections.abc import Mapping
from typing import Any, Final

_SEEING: Final = {"HostToContainer", "Bidirectional"}


def blind_containers(pod: Mapping[str, Any], *, claim: str) -> list[str]:
    """The names of the containers that mount the claim's volume, and see nothing of what is mounted on it later."""
    spec = pod.get("spec", {})
    volumes = {
        volume["name"]
        for volume in spec.get("volumes") or ()
        if volume.get("persistentVolumeClaim", {}).get("claimName") == claim
    }
    return [
        container["name"]
        for container in spec.get("containers") or ()
        if any(
            mount["name"] in volumes and mount.get("mountPropagation") not in _SEEING
            for mount in container.get("volumeMounts") or ()
        )
    ]
