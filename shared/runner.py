"""Runs one short command of the client with a deadline, and turns its failure into the driver's words."""

import asyncio
import contextlib
import subprocess
from typing import Final

from shared.diagnosis import UNKNOWN, Diagnosis, diagnose
from shared.errors import CommandFailed, NotReady
from shared.juicefs import Command

_OUTPUT_BYTES: Final = 1 << 20


async def run(command: Command, *, timeout: float) -> str:
    """What the command printed, both streams together. `timeout` in seconds; the process is gone when this returns.

    Raises:
        CommandFailed: it ended with an error; the message holds the masked line that says why.
        NotReady: it did not end in time, and what it was trying is named; or it can't be started.
    """
    process = _start(command)
    output = bytearray()
    try:
        async with asyncio.timeout(timeout):
            await _read(process, output)
            code = await asyncio.to_thread(process.wait)
    except TimeoutError:
        found = why(command, output)
        raise NotReady(f"{found.reason}: no answer within {timeout:g} s, last said: {found.line}") from None
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
    if code != 0:
        found = why(command, output)
        raise CommandFailed(f"{found.reason}: {found.line}", reason=found.reason)
    return output.decode(errors="replace")


async def _read(process: subprocess.Popen[bytes], output: bytearray) -> None:
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    with contextlib.closing(pipe):
        await keep_tail(reader, output)


async def keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    """Read to the end of a stream and keep its last MiB: a client that retries prints for ever."""
    while chunk := await stream.read(65536):
        tail += chunk
        del tail[:-_OUTPUT_BYTES]


def why(command: Command, output: bytes | bytearray) -> Diagnosis:
    """What the output of a command that failed says."""
    silent = Diagnosis(reason=UNKNOWN, line=f"juicefs {command.argv[1]} said nothing")
    return diagnose(output.decode(errors="replace"), marks=command.marks) or silent


def _start(command: Command) -> subprocess.Popen[bytes]:
    """Not by the loop: uvloop takes four times as long to start a process, and knows no umask."""
    try:
        return subprocess.Popen(
            command.argv,
            env=command.whole_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=command.umask,
            start_new_session=True,
        )
    except OSError as error:
        raise NotReady(f"{command.argv[0]} can't be run: {error.strerror}") from None
