"""The life of a program: options, logs, event loop, signals, health, and an orderly end."""

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import uvloop
from aiohttp import web

from shared import log, options
from shared.errors import DriverError, InUse, InvalidRequest
from shared.metrics import CONTENT_TYPE, Metrics

Check = Callable[[], str | None]
"""None when all is well, else the reason why not."""

_LAG_BEAT: Final = 0.5  # seconds
_ENDING: Final = 5.0  # seconds until a background task is cancelled once more
_LAST_PORT: Final = 65535

_log = structlog.get_logger()


class App:
    """What a program is given: its options, its metrics, a place for its background tasks, and the wish to stop."""

    def __init__(self, *, service: str, parsed: argparse.Namespace, tasks: asyncio.TaskGroup) -> None:
        self.service = service
        self.options = parsed
        self.metrics = Metrics(node=getattr(parsed, "node", None) or "")
        self.stopping = asyncio.Event()
        self._tasks = tasks
        self._background: list[asyncio.Task[None]] = []
        self._checks: dict[str, Check] = {}

    @property
    def nats_url(self) -> str:
        """With its password: for `shared.bus.Bus` only."""
        return options.nats_url(self.options)

    def background(self, work: Coroutine[Any, Any, Any], *, name: str) -> None:
        """Run `work` until the program ends. That it ends before is an error, and ends the program."""
        self._background.append(self._tasks.create_task(_guard(work, name=name), name=name))

    def ready_when(self, name: str, check: Check) -> None:
        """Add to what `/readyz` asks."""
        self._checks[name] = check

    def reasons(self) -> dict[str, str]:
        """Why the service isn't ready, by the name of the check; empty when it is."""
        asked = {name: check() for name, check in self._checks.items()}
        if self.stopping.is_set():
            asked["service"] = "stopping"
        return {name: reason for name, reason in asked.items() if reason is not None}

    async def end_background(self) -> None:
        """Cancel the background tasks, the youngest first, as each may need what was started before it."""
        for task in reversed(self._background):
            while not task.done():  # a TaskGroup loses a cancellation that meets a failure (up to Python 3.12)
                task.cancel()
                await asyncio.wait({task}, timeout=_ENDING)


def run(
    service: str,
    main: Callable[[App], Awaitable[None]],
    parser: argparse.ArgumentParser,
    *,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a service until it is told to stop; the exit code.

    `main` starts its background tasks, awaits `app.stopping`, and ends what it serves. A DriverError that leaves it, or
    a background task, ends the program with one line that says what to do.
    """
    parser.add_argument("--log-level", choices=log.LEVELS, default="info")
    parser.add_argument("--log-format", choices=log.FORMATS, default="auto", help="auto: console on a terminal")
    parser.add_argument(
        "--health-address", metavar="HOST:PORT", default="127.0.0.1:0", help="health and metrics (%(default)s)"
    )
    options.add_nats(parser)
    parsed = options.parse(parser, argv)
    log.configure(level=parsed.log_level, style=parsed.log_format)
    node = getattr(parsed, "node", None)
    structlog.contextvars.bind_contextvars(service=service, **({"node": node} if node else {}))
    code = 1
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(service, main, parsed))
        code = 0
    except* DriverError as failures:
        for error in log.leaves(failures):
            _log.critical("cannot go on", cause=str(error))
    except* asyncio.CancelledError:
        _log.critical("stopped at once, since asked twice")
    except* Exception as failures:  # noqa: BLE001 - the last resort
        _log.critical("ended by a fault", exc_info=failures)
    return code


async def _live(service: str, main: Callable[[App], Awaitable[None]], parsed: argparse.Namespace) -> None:
    async with asyncio.TaskGroup() as tasks:
        app = App(service=service, parsed=parsed, tasks=tasks)
        _obey_signals(app)
        async with _health(app):
            app.background(_measure_lag(app.metrics), name="loop lag")
            await main(app)
            app.stopping.set()
            await app.end_background()


def _obey_signals(app: App) -> None:
    """SIGTERM and SIGINT ask for an orderly end; the second one for an end at once."""
    task = asyncio.current_task()

    def obey() -> None:
        if app.stopping.is_set() and task is not None:
            task.cancel()
        app.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, obey)


async def _guard(work: Coroutine[Any, Any, Any], *, name: str) -> None:
    await work
    raise RuntimeError(f"the background task {name} has ended")


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_BEAT
        await asyncio.sleep(_LAG_BEAT)
        metrics.loop_lag.set(max(0.0, loop.time() - due))


@asynccontextmanager
async def _health(app: App) -> AsyncIterator[None]:
    """`/healthz`: the loop turns; `/readyz`: every check holds, else 503 and the reasons; `/metrics`."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = app.reasons()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=app.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    host, port = _host_and_port(app.options.health_address)
    server = web.Application()
    server.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise InUse(f"--health-address {app.options.health_address}: {error.strerror or error}") from None
        _log.info("serving health", host=runner.addresses[0][0], port=runner.addresses[0][1])
        yield
    finally:
        await runner.cleanup()


def _host_and_port(address: str) -> tuple[str | None, int]:
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > _LAST_PORT:
        raise InvalidRequest("--health-address must be host:port, such as 127.0.0.1:9909 or :9909")
    return host.strip("[]") or None, int(port)
