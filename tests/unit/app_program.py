"""A program of the house, as small as it can be: test_app.py runs it."""

import argparse
import asyncio
import sys

import structlog

from shared import app
from shared.api.csi.v1 import CreateVolumeRequest, CreateVolumeResponse
from shared.csi import Endpoint
from shared.errors import NotReady
from tests.unit.csi_server import Controller, created


class Meeting:
    """Calls that are answered a moment after the program is told to stop."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._present = 0

    async def create(self, request: CreateVolumeRequest) -> CreateVolumeResponse:
        self._present += 1
        structlog.get_logger().info("present", count=self._present)
        await self._stopping.wait()
        await asyncio.sleep(0.2)
        return await created(request)


async def serve(program: app.App) -> None:
    match program.options.fault:
        case "driver":
            raise NotReady("no /dev/fuse: load the fuse module")
        case "bug":
            raise ValueError("hunter2")
        case "background":
            program.background(asyncio.sleep(0), name="nap")
    program.ready_when("moon", lambda: "it is day" if program.options.fault == "day" else None)
    controller = Controller(Meeting(program.stopping).create)
    endpoint = Endpoint(program.options.endpoint, [controller], metrics=program.metrics)
    program.background(endpoint.run(), name="csi")
    await program.stopping.wait()
    if program.options.fault == "stubborn":
        structlog.get_logger().info("not yet")
        await asyncio.get_running_loop().create_future()
    await endpoint.drain(10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="program")
    parser.add_argument("--node-id", dest="node", default="n1")
    parser.add_argument("--fault", default="")
    parser.add_argument("--endpoint", required=True)
    sys.exit(app.run("program", serve, parser))
