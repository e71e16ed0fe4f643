"""What counts as sent."""

import asyncio
import json
from contextlib import suppress

import nats
import nats.errors

from shared.metrics import Metrics
from shared.outbox import Outbox

INFO = {"server_id": "x", "version": "2.15.0", "proto": 1, "max_payload": 1 << 20, "headers": True}


async def test_what_the_server_did_not_take_is_kept() -> None:
    """It is killed when it has answered the first ping after an event was sent, before it reads on."""
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO).encode() + b"\r\n")
        pings = 0
        while pings < 2:  # the first is a part of connecting
            word = (await reader.readline()).split(b" ")[0].strip()
            taken.append(word)
            if word == b"PING":
                pings += 1
                writer.write(b"PONG\r\n")
        writer.close()

    outbox = Outbox(metrics=Metrics(node=""), keeps_stream=False)
    outbox.put("juicefs.event.n1.MountIdle", b"x")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await nats.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, max_reconnect_attempts=0)
        try:
            with suppress(nats.errors.Error):
                await outbox._send(client)
        finally:
            await client.close()
    assert len(outbox) == 1 - taken.count(b"HPUB")
