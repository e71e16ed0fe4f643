from dataclasses import dataclass, field

import pytest

from services.mountpod.planner import Volumes
from shared.errors import InvalidRequest, NotReady
from shared.kubernetes import Kubernetes
from shared.objects import CsiSource, Metadata, PersistentVolume, PersistentVolumeSpec

DRIVER = "csi.juicefs.com"
_AWAY = Kubernetes.__new__(Kubernetes)  # nothing is asked of it


@dataclass
class Watched:
    """Volumes as their watch tells of them."""

    volumes: Volumes = field(default_factory=lambda: Volumes(_AWAY, driver=DRIVER))
    version: int = 0

    def says(self, name: str, handle: str, *, driver: str = DRIVER, uid: str = "") -> PersistentVolume:
        self.version += 1
        metadata = Metadata(name=name, uid=uid or name, resource_version=f"{self.version}")
        volume = PersistentVolume(
            metadata=metadata, spec=PersistentVolumeSpec(csi=CsiSource(driver=driver, volume_handle=handle))
        )
        self.volumes._informer._put(volume)
        return volume

    def forgets(self, name: str) -> None:
        self.volumes._informer._tell(self.volumes._informer.objects.pop(name), None)


def test_found_by_handle() -> None:
    watched = Watched()
    volume = watched.says("name", "Handle With Spaces")
    unique = next(iter(watched.volumes._handles))

    assert watched.volumes.get("Handle With Spaces") == volume
    assert watched.volumes.handle(unique) == "Handle With Spaces"


def test_as_it_is_now() -> None:
    watched = Watched()
    watched.says("name", "handle")
    changed = watched.says("name", "handle")

    assert watched.volumes.get("handle") == changed


def test_two_of_one_handle() -> None:
    watched = Watched()
    watched.says("one", "handle")
    second = watched.says("two", "handle")
    with pytest.raises(InvalidRequest, match="one and two have the same volumeHandle"):
        watched.volumes.get("handle")

    watched.forgets("one")

    assert watched.volumes.get("handle") == second


def test_gone() -> None:
    watched = Watched()
    watched.says("name", "handle")
    watched.forgets("name")

    with pytest.raises(NotReady, match="no PersistentVolume has the volumeHandle handle"):
        watched.volumes.get("handle")
    with pytest.raises(NotReady, match="was it deleted"):
        watched.volumes.handle("handle")


def test_made_anew_with_another_handle() -> None:
    watched = Watched()
    watched.says("name", "first", uid="1")
    second = watched.says("name", "second", uid="2")

    assert watched.volumes.get("second") == second
    with pytest.raises(NotReady):
        watched.volumes.get("first")


def test_of_another_driver() -> None:
    watched = Watched()
    watched.says("name", "handle", driver="csi.example.com")

    with pytest.raises(NotReady):
        watched.volumes.get("handle")
