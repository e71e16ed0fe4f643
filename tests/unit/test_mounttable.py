"""The mount table as the kernel writes it."""

from pathlib import Path

from shared.mounttable import MountTable

TABLE = """\
26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
42 26 0:39 / /jfs/pvc-a-abcdef rw,nosuid,nodev,relatime shared:7 master:1 - fuse.juicefs JuiceFS:demo rw,user_id=0
43 26 0:39 /sub\\040dir /pods/with\\040space\\134/mount ro,nosuid,nodev - fuse.juicefs JuiceFS:demo rw,user_id=0
44 42 0:40 / /jfs/pvc-a-abcdef rw - fuse.juicefs JuiceFS:demo rw
"""


def test_optional_fields_and_escapes(tmp_path: Path) -> None:
    """proc(5): any number of optional fields before the dash; odd characters as octal."""
    (tmp_path / "table").write_text(TABLE)
    entry = MountTable(tmp_path / "table").at("/pods/with space\\/mount")[0]
    assert (entry.root, entry.mount_point) == ("/sub dir", "/pods/with space\\/mount")
    assert (entry.device, entry.minor, entry.is_juicefs, entry.is_read_only) == ("0:39", 39, True, True)


def test_the_later_entry_is_on_top(tmp_path: Path) -> None:
    """A path walk ends in the last mount at a mount point."""
    (tmp_path / "table").write_text(TABLE)
    table = MountTable(tmp_path / "table")
    assert [entry.device for entry in table.at("/jfs/pvc-a-abcdef")] == ["0:39", "0:40"]
    top = table.top("/jfs/pvc-a-abcdef")
    assert top is not None
    assert top.device == "0:40"


def test_nothing_mounted(tmp_path: Path) -> None:
    """A bare directory has no layers."""
    (tmp_path / "table").write_text(TABLE)
    assert MountTable(tmp_path / "table").top("/jfs") is None


def test_a_mount_slid_beneath_is_not_on_top(tmp_path: Path) -> None:
    """Listed last, but the other one's parent: move_mount(2), MOVE_MOUNT_BENEATH."""
    (tmp_path / "table").write_text("51 52 0:50 / /t rw - fuse.juicefs J rw\n52 26 0:51 / /t rw - fuse.juicefs J rw\n")
    top = MountTable(tmp_path / "table").top("/t")
    assert top is not None
    assert top.device == "0:50"
