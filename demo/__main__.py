"""A volume's whole life, told step by step and checked: on this machine without Kubernetes, or in docker-compose.

Without arguments it starts nats-server and the services as processes, in a directory of its own under /tmp, and leaves
nothing behind. With --attach it plays the same story against a driver that runs already.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel

from demo.driver import local_driver, program
from demo.machine import FoundMachine, LocalMachine, background
from demo.orchestrator import Orchestrator, stubs
from demo.story import Story
from demo.timeline import CheckFailed, Timeline, until
from shared import log
from shared.bus import Bus
from shared.layout import Layout


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = parser.add_argument_group("a driver that runs already")
    found.add_argument("--attach", action="store_true", help="play against it instead of starting one")
    found.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="where NATS is (%(default)s)")
    found.add_argument("--node-id", default="local", metavar="NAME", help="the machine's name (%(default)s)")
    found.add_argument("--controller-socket", default="/csi/controller.sock", metavar="FILE", help="(%(default)s)")
    found.add_argument("--node-socket", default="/csi/csi.sock", metavar="FILE", help="(%(default)s)")
    found.add_argument("--pod-directory", default="/var/lib/kubelet", metavar="DIR", help="(%(default)s)")
    found.add_argument("--mount-root", default=str(Layout().mount_root), metavar="DIR", help="(%(default)s)")
    found.add_argument("--run-directory", default=str(Layout().run), metavar="DIR", help="(%(default)s)")
    found.add_argument("--secret", metavar="FILE", help="the volume Secret as JSON (or its text in DEMO_SECRET)")
    return parser.parse_args()


def refuse(options: argparse.Namespace) -> str:
    """Why the demo can't run here; empty if it can."""
    if os.geteuid() != 0:
        return "the demo mounts file systems: run it as root"
    if not options.attach and not Path("/dev/fuse").exists():
        return "there is no /dev/fuse: load the kernel module (modprobe fuse)"
    if options.attach and not (options.secret or "DEMO_SECRET" in os.environ):
        return "--attach needs --secret or DEMO_SECRET: which file system?"
    return ""


@asynccontextmanager
async def tap(nats_url: str, line: Timeline) -> AsyncIterator[None]:
    """The event tap beside the timeline while inside."""
    process = await asyncio.create_subprocess_exec(
        program("juicefs-csi-tap"),
        "--nats",
        nats_url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if process.stdout is not None:
            async with background(line.follow(process.stdout)):
                yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def listening(nats_url: str, line: Timeline) -> AsyncIterator[Bus]:
    """The bus, and the tap beside the timeline."""
    bus = Bus(url=nats_url, service="demo")
    async with background(bus.run()), tap(nats_url, line):
        await until(lambda: bus.is_connected, timeout=10, what="no connection to NATS")
        yield bus


@asynccontextmanager
async def calling(controller: str, node: str, **settings: Any) -> AsyncIterator[Orchestrator]:
    """An orchestrator on both CSI sockets, with these settings."""
    channels = Channel(path=controller), Channel(path=node)
    both = stubs(*channels)
    try:
        yield Orchestrator(controller=both[0], node=both[1], **settings)
    finally:
        for channel in channels:
            channel.close()


async def orderly(story: Coroutine[Any, Any, None]) -> None:
    """SIGTERM ends the story as Ctrl-C does: everything is cleaned up."""
    task = asyncio.ensure_future(story)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


async def play_here(line: Timeline) -> None:
    line.title("JuiceFS CSI driver: nats-server, controller, mountpod and node as processes on this machine")
    async with AsyncExitStack() as stack:
        with line.step("start nats-server and three services") as checked:
            driver = await stack.enter_async_context(local_driver())
            checked.append(f"all serve; everything lies below {driver.base}")
        bus = await stack.enter_async_context(listening(driver.nats_url, line))
        sockets = str(driver.socket("controller")), str(driver.socket("node"))
        csi = await stack.enter_async_context(
            calling(*sockets, pods=driver.pods, secrets=driver.secrets, mount_options=driver.mount_options)
        )
        await Story(line=line, machine=LocalMachine(driver=driver, bus=bus), orchestrator=csi).tell()
    line.title("Afterwards")
    with line.step("look for what is left") as checked:
        left = driver.left + driver.leftovers() + ([str(driver.base)] if driver.base.exists() else [])
        if left:
            raise CheckFailed(f"left behind: {', '.join(left)}")
        checked.append("no process, no mount, no file")


async def play_there(line: Timeline, options: argparse.Namespace) -> None:
    line.title("JuiceFS CSI driver: against the driver that runs already")
    secrets = json.loads(Path(options.secret).read_text() if options.secret else os.environ["DEMO_SECRET"])
    pods = Path(options.pod_directory)
    async with (
        listening(options.nats, line) as bus,
        calling(options.controller_socket, options.node_socket, pods=pods, secrets=secrets) as csi,
    ):
        machine = FoundMachine(
            layout=Layout(mount_root=Path(options.mount_root), run=Path(options.run_directory)),
            bus=bus,
            node=options.node_id,
            node_socket=Path(options.node_socket),
        )
        await Story(line=line, machine=machine, orchestrator=csi).tell()


def main() -> int:
    options = parse()
    if reason := refuse(options):
        print(f"demo: {reason}", file=sys.stderr)
        return 1
    log.configure(level="error")
    line = Timeline()
    try:
        asyncio.run(orderly(play_there(line, options) if options.attach else play_here(line)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted; everything is cleaned up", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - a person reads it
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    line.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
