"""A gRPC server that does nothing: what a call costs at least, over the same libraries, loop and kind of socket."""

import asyncio
import sys

import uvloop
from grpclib.server import Server

from shared.api.csi.v1 import IdentityBase, ProbeRequest, ProbeResponse


class Bare(IdentityBase):
    async def probe(self, message: ProbeRequest) -> ProbeResponse:
        del message
        return ProbeResponse(ready=True)


async def serve(path: str) -> None:
    server = Server([Bare()])
    await server.start(path=path)
    print("ready", flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
