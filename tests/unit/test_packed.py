import sys
from uuid import UUID, uuid4

import pytest

from shared.objects import ClaimReference, CsiSource, Metadata, PersistentVolume, PersistentVolumeSpec
from shared.packed import Packed


def volume(name: str, **attributes: str) -> PersistentVolume:
    return PersistentVolume(
        metadata=Metadata(name=name, uid=str(uuid4()), labels={"a": "b"}),
        spec=PersistentVolumeSpec(
            csi=CsiSource(driver="csi.juicefs.com", volume_handle=name, volume_attributes=attributes),
            claim_ref=ClaimReference(name="data", namespace="default", uid=str(UUID(int=1))),
            mount_options=("cache-size=1",),
        ),
    )


def test_is_a_dict() -> None:
    packed: Packed[PersistentVolume] = Packed(PersistentVolume)
    volumes = {name: volume(name, subPath=name) for name in ("first", "second", "ünïcode")}
    packed.update(volumes)

    assert dict(packed) == volumes
    assert packed.get("third") is None
    assert "first" in packed
    assert packed.pop("first") == volumes.pop("first")
    assert (dict(packed), len(packed), "first" in packed) == (volumes, 2, False)


def test_object_takes_another_ones_place() -> None:
    packed: Packed[PersistentVolume] = Packed(PersistentVolume)
    packed["a"] = volume("a")
    packed["a"] = changed = volume("a", subPath="elsewhere")

    assert packed["a"] == changed


@pytest.mark.parametrize("size", [0, 100_000])
def test_sizes(size: int) -> None:
    """Shorter and far longer than what a window holds."""
    packed: Packed[PersistentVolume] = Packed(PersistentVolume)
    packed["long"] = long = volume("long", text="".join(map(str, range(size // 5))))
    packed["short"] = short = volume("short")

    assert (packed["long"], packed["short"]) == (long, short)


def test_little_is_kept_of_what_others_said() -> None:
    packed: Packed[PersistentVolume] = Packed(PersistentVolume)
    attributes = {f"csi.storage.k8s.io/some-long-key-{number}": "the same everywhere" for number in range(20)}
    for number in range(100):
        packed[f"{number}"] = volume(f"{number}", **attributes)

    assert sum(map(sys.getsizeof, packed._packed.values())) < 100 * 200
