"""The script of a mount pod, run as a container runs it: in namespaces of its own, with a client that obeys."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.mount_script import LEAVE, SCRIPT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")

UUID = "0123abcd-0000-4000-8000-0123456789ab"
# What is below the test's directory lies where a container has it; /tmp comes last, since the directory may be in it.
INSIDE = """
here=$1; shift
for pair in bin:/usr/local/bin run:/run mnt:/mnt tmp:/tmp; do
    mount --bind "$here/${pair%%:*}" "${pair#*:}" || exit 99
done
exec "$@"
"""
JUICEFS = f"""#!/bin/sh
printf '<%s>' juicefs "$@" >>/tmp/log; echo >>/tmp/log
[ "$1" = config ] && echo '  "UUID": "{UUID}",'
exit "$(cat /tmp/format-code 2>/dev/null || echo 0)"
"""
# It does one order after another; `family` is what a real client is: a supervisor, and a child that serves.
CLIENT = """#!/bin/sh
echo "start $* sid=${_JFS_META_SID-} state=${_FUSE_STATE_PATH-}" >>/tmp/log
while read -r what code </tmp/orders; do
    case $what in
    mount) mount -t tmpfs none "$CSI_MOUNT_POINT" ;;
    unmount) umount "$CSI_MOUNT_POINT" ;;
    exit) exit "$code" ;;
    family)
        sh -c 'trap "echo saved >>/tmp/log; exit" HUP; echo family >>/tmp/log; while :; do sleep 0.05; done' &
        wait
        exit 0 ;;
    esac
    echo "done $what" >>/tmp/log
done
"""


class Container:
    """`here` is the host's side of it; each start is a new container of the same pod, whose /tmp stays."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.running: list[subprocess.Popen[str]] = []
        for name in ("bin", "run", "mnt", "tmp", "mnt/point"):
            (here / name).mkdir()
        for name, text in (("juicefs", JUICEFS), ("client", CLIENT)):
            (here / "bin" / name).write_text(text)
            (here / "bin" / name).chmod(0o755)
        (here / "tmp" / "log").touch()
        os.mkfifo(here / "tmp" / "orders")

    def start(self, *arguments: str, own_pids: bool = True, **environment: str) -> subprocess.Popen[str]:
        (self.here / "run" / "serving").unlink(missing_ok=True)
        spaces = ["--mount", *(["--pid", "--fork", "--mount-proc", "--kill-child"] if own_pids else [])]
        command = ["/bin/sh", "-c", SCRIPT, "jfs-mount", "/usr/local/bin/client", *arguments]
        inside = ["unshare", *spaces, "/bin/sh", "-c", INSIDE, "inside", str(self.here), *command]
        fixed = {"CSI_FORMAT": "", "CSI_CLEAN": "", "CSI_META_URL": "redis://x", "CSI_MOUNT_POINT": "/mnt/point"}
        wanted = {"PATH": os.environ["PATH"], **fixed, **environment}
        pipe = subprocess.PIPE
        found = subprocess.Popen(inside, env=wanted, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        self.running.append(found)
        return found

    def main(self, started: subprocess.Popen[str]) -> int:
        """The script's process, as the host sees it."""
        found = children(started.pid)
        return found[0] if len(found) == 1 and comm(started.pid) == "unshare" else started.pid

    def leave(self, started: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """preStop, as kubelet has it run."""
        spaces = ["nsenter", "--target", str(self.main(started)), "--mount", "--pid"]
        found = subprocess.Popen([*spaces, "/bin/sh", "-c", LEAVE], text=True)
        self.running.append(found)
        return found

    def order(self, text: str) -> None:
        """Wait until a client reads, and tell it."""

        def write() -> bool:
            try:
                orders = os.open(self.here / "tmp" / "orders", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            os.write(orders, f"{text}\n".encode())
            os.close(orders)
            return True

        until(write)
        if not text.startswith("exit"):
            until(lambda: re.search(rf"^(done )?{text}$", self.log(), re.MULTILINE))

    def log(self) -> str:
        return (self.here / "tmp" / "log").read_text()

    def starts(self) -> list[str]:
        return [line for line in self.log().splitlines() if line.startswith("start")]

    def file(self, name: str) -> Path:
        return self.here / "tmp" / name

    def end(self) -> None:
        for one in self.running:
            if one.poll() is None:
                for pid in (*children(self.main(one)), self.main(one), one.pid):
                    os.kill(pid, signal.SIGKILL)
            one.communicate()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    found = Container(tmp_path)
    yield found
    found.end()


def test_it_waits_for_the_client_before_it(container: Container) -> None:
    """One client at a time: the lock is the first one's as long as it lives."""
    with container.file("alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = container.start("url", "/mnt/point")
        until(lambda: "flock" in [comm(pid) for pid in children(container.main(started))])
        assert (container.starts(), (container.here / "run" / "serving").exists()) == ([], False)
    until(container.starts)
    container.order("exit 0")
    assert started.wait() == 0


def test_the_lock_is_held_while_the_client_lives(container: Container) -> None:
    """From its start to its end."""
    started = container.start()
    until(container.starts)
    with container.file("alive").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    container.order("exit 0")
    started.wait()
    with container.file("alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_is_left_of_a_killed_container_holds_no_lock(container: Container) -> None:
    """The kernel kills the rest, too; but one that waits for its own mount ends with the next client."""
    started = container.start(own_pids=False)
    until(container.starts)
    (client,) = children(container.main(started))
    os.kill(container.main(started), signal.SIGKILL)
    started.wait()
    with container.file("alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(client, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{client}").exists())


def test_who_waits_ends_when_told(container: Container) -> None:
    """A successor that is not needed any more takes no time to go."""
    with container.file("alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = container.start()
        until(lambda: "flock" in [comm(pid) for pid in children(container.main(started))])
        began = time.monotonic()
        os.kill(container.main(started), signal.SIGTERM)
        assert started.wait() == 143
    assert time.monotonic() - began < 2


def test_it_formats_once(container: Container) -> None:
    """Each line is an argument, whatever is in it (promise 21); a container after this one finds it done."""
    words = ["format", "--bucket=a b", "*", "$(id)", "`id`", "'q'", "redis://x", "demo"]
    for _ in range(2):
        started = container.start(CSI_FORMAT="\n".join(words))
        container.order("exit 3")
        assert started.wait() == 3
    shown = [line for line in container.log().splitlines() if line.startswith("<juicefs>")]
    assert shown == ["<juicefs>" + "".join(f"<{word}>" for word in words)]


def test_a_format_that_fails_ends_it(container: Container) -> None:
    """With the client's exit code, and the next one tries again."""
    container.file("format-code").write_text("7")
    for _ in range(2):
        assert container.start(CSI_FORMAT="format\nx").wait() == 7
    assert (container.log().count("<format>"), container.starts()) == (2, [])


def test_without_its_mount_a_client_that_fails_is_kubelets(container: Container) -> None:
    """Its exit code is passed on, so that its last words are found."""
    started = container.start("a b", "*")
    container.order("exit 9")
    assert started.wait() == 9
    assert container.starts() == ["start a b * sid= state="]


def test_a_client_that_dies_starts_again_while_its_mount_is_there(container: Container) -> None:
    """At once: kubelet would wait for minutes. It ends in order when the mount is gone."""
    started = container.start()
    container.order("mount")
    container.order("exit 1")
    until(lambda: len(container.starts()) == 2)
    container.order("unmount")
    container.order("exit 0")
    assert (started.wait(), len(container.starts())) == (0, 2)


def test_a_client_that_ends_in_order_is_not_started_again(container: Container) -> None:
    """Exit code 0 is one that handed over, or whose mount was closed."""
    started = container.start()
    container.order("mount")
    container.order("exit 0")
    assert (started.wait(), len(container.starts())) == (0, 1)


def test_nothing_of_a_dead_client_goes_on(container: Container) -> None:
    """A supervisor that is killed leaves a child that serves: two would serve one connection."""
    started = container.start()
    container.order("mount")
    container.order("family")
    (supervisor,) = children(container.main(started))
    child = children(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: len(container.starts()) == 2)
    until(lambda: not any(map(is_alive, child)))
    container.order("exit 0")
    assert started.communicate() == ("", "Killed\n")


def test_what_is_open_is_resumed_once(container: Container) -> None:
    """Session and file of the client before it are for the next one only."""
    container.file("resume").write_text("42\n/tmp/state 7.json\n")
    started = container.start()
    container.order("mount")
    assert not container.file("resume").exists()
    container.order("exit 1")
    until(lambda: len(container.starts()) == 2)
    assert container.starts() == ["start  sid=42 state=/tmp/state 7.json", "start  sid= state="]
    container.order("exit 0")
    started.wait()


@pytest.mark.parametrize("own_pids", [True, False], ids=["own processes", "the machine's processes"])
def test_a_client_that_leaves_hands_over(container: Container, *, own_pids: bool) -> None:
    """It waits for the node's word, has what is open saved, and is gone; hostPID changes nothing."""
    started = container.start(own_pids=own_pids)
    container.order("family")
    leaving = container.leave(started)
    until(container.file("leaving").exists)
    assert "saved" not in container.log()
    container.file("resume").write_text("42\n/tmp/state7.json\n")
    assert started.wait() == 0
    assert leaving.wait() in {0, -signal.SIGKILL}  # which the end of a container does to all in it
    assert container.log().endswith("family\nsaved\n")
    assert (container.file("leaving").exists(), container.file("resume").exists()) == (False, True)


def test_who_never_served_leaves_at_once(container: Container) -> None:
    """There is nothing to hand over."""
    with container.file("alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = container.start()
        until(lambda: "flock" in [comm(pid) for pid in children(container.main(started))])
        assert container.leave(started).wait() == 0
        assert not container.file("leaving").exists()
        os.kill(container.main(started), signal.SIGTERM)
        started.wait()


def test_without_the_nodes_word_it_gives_up(container: Container) -> None:
    """Eight seconds of the ten that a pod has; the client is left to its end, and says no more that it leaves."""
    started = container.start()
    container.order("family")
    assert container.leave(started).wait(timeout=20) == 0
    assert "saved" not in container.log()
    assert not container.file("leaving").exists()


@pytest.mark.parametrize("is_mounted", [False, True])
def test_caches_are_emptied_when_the_mount_is_gone(container: Container, *, is_mounted: bool) -> None:
    """juicefs/clean-cache: of this file system only, and not while another client goes on with the mount."""
    ours, others = (container.file(f"a b/{uuid}/raw/chunks/0") for uuid in (UUID, "other"))
    for path in (ours, others):
        path.parent.mkdir(parents=True)
        path.touch()
    started = container.start(CSI_CLEAN="/tmp/none\n/tmp/a b")
    container.order("mount")
    if not is_mounted:
        container.order("unmount")
    container.order("exit 0")
    assert started.wait() == 0
    assert (ours.exists(), others.exists()) == (is_mounted, True)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Nobody waits for a zombie whose parent died."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], Any], *, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
