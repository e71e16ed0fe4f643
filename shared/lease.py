"""One of several replicas leads: the one whose name is in a Lease object, and only as long as it renews it.

Clocks of different machines are never compared: a holder has `duration` seconds from when its last renewal was seen
here. A leader stops its work `deadline` seconds after its last renewal was sent, which is earlier.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from shared.errors import AlreadyExists, DriverError, NotFound, NotReady
from shared.kubernetes import LEASES, Conflict, Kubernetes

_RELEASE: Final = 2.0  # seconds

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds: how long a lease lasts, how long a leader tries to renew, and how long between two tries."""

    duration: int = 15
    deadline: float = 10.0
    retry: float = 2.0


class Lease:
    """`identity` is this process' alone among the living: two of the same name would both lead."""

    def __init__(
        self, api: Kubernetes, *, name: str, namespace: str, identity: str, timing: Timing | None = None
    ) -> None:
        self._api = api
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._timing = timing or Timing()
        self._found: dict[str, Any] | None = None  # as it was seen last
        self._found_at = 0.0
        self._leads_until = 0.0

    @property
    def is_leader(self) -> bool:
        """Asked of the clock, so that it is right even after this process was stopped for a while."""
        return _now() < self._leads_until

    @property
    def is_anothers(self) -> bool:
        """True if it was somebody else's when we saw it last."""
        return _holder(self._found) not in {"", self._identity}

    async def lead(self, work: Callable[[], Awaitable[None]], *, follows: bool = True) -> None:
        """Wait until we lead, then do `work`; the lease is released when that ends, or this is cancelled.

        Raises:
            NotReady: the lease was lost, and work with it; it has ended by then, or had the rest of the lease for it.
                Or somebody else leads, and we don't want to wait for their end (not `follows`).
        """
        await self._win(follows=follows)
        _log.info("leading", lease=self._name, identity=self._identity)
        working = asyncio.ensure_future(work())
        keeping = asyncio.create_task(self._keep())
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise NotReady(f"the lease {self._name} was lost: {keeping.result()}")
            working.result()
        finally:
            await self._end(working)
            keeping.cancel()
            await asyncio.wait({keeping})
            if working.done():
                await self._release()

    async def _win(self, *, follows: bool) -> None:
        is_told = False
        while True:
            sent = _now()
            try:
                async with asyncio.timeout(self._timing.deadline):
                    is_ours = await self._claim()
            except (DriverError, TimeoutError) as error:
                is_ours = False
                if not is_told:
                    _log.warning("lease out of reach", lease=self._name, error=str(error) or "no answer in time")
                is_told = True
            else:
                if not (is_ours or follows):
                    raise NotReady(f"{_holder(self._found)} holds the lease {self._name}")
            if is_ours:
                self._leads_until = sent + self._timing.deadline
                return
            await self._rest()

    async def _keep(self) -> str:
        """Renew until that fails; the reason."""
        cause = "not renewed in time"
        while self.is_leader:
            await self._rest()
            sent = _now()
            try:
                # A try gets a part of the time, so that one connection that is silent does not cost the lease.
                async with asyncio.timeout_at(min(self._leads_until, sent + self._timing.deadline / 2.5)):
                    if not await self._claim():
                        self._leads_until = 0.0
                        return f"{_holder(self._found)} holds it"
            except TimeoutError:
                cause = "the API server did not answer in time"
            except DriverError as error:
                cause = str(error)
            else:
                self._leads_until = sent + self._timing.deadline
        return cause

    async def _claim(self) -> bool:
        """Take or renew it if nobody else holds it; true if it is ours now."""
        if self._found is None or not self.is_leader:
            await self._look()
        if self._found is None:
            return await self._write(None)
        if self.is_anothers and _now() < self._found_at + _duration(self._found):
            return False
        return await self._write(self._found)

    async def _look(self) -> None:
        try:
            found = await self._api.get(LEASES, self._name, namespace=self._namespace)
        except NotFound:
            self._found = None
            return
        if self._found is None or found["metadata"]["resourceVersion"] != self._found["metadata"]["resourceVersion"]:
            self._found_at = _now()
        self._found = found

    async def _write(self, old: dict[str, Any] | None) -> bool:
        body = self._body(old)
        try:
            if old is None:
                self._found = await self._api.create(LEASES, body, namespace=self._namespace)
            else:
                self._found = await self._api.replace(LEASES, self._name, body, namespace=self._namespace)
        except (AlreadyExists, Conflict, NotFound):
            # Somebody else wrote or removed it, or an answer of ours got lost: the next try goes by what it is now.
            await self._look()
            if self._found is not None and _holder(self._found) != self._identity:
                return False
            return await self._write_again() if self.is_leader else False
        self._found_at = _now()
        return True

    async def _write_again(self) -> bool:
        """Ours still, but not as we left it. Failing this time too, it is not lost before its time."""
        body = self._body(self._found)
        if self._found is None:
            self._found = await self._api.create(LEASES, body, namespace=self._namespace)
        else:
            self._found = await self._api.replace(LEASES, self._name, body, namespace=self._namespace)
        return True

    def _body(self, old: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = dict((old or {}).get("spec") or {})
        if _holder(old) != self._identity:
            transitions = int(spec.get("leaseTransitions") or 0) + (1 if old else 0)
            spec |= {"holderIdentity": self._identity, "acquireTime": now, "leaseTransitions": transitions}
        spec |= {"leaseDurationSeconds": self._timing.duration, "renewTime": now}
        return {"metadata": old["metadata"] if old else {"name": self._name}, "spec": spec}

    async def _end(self, working: "asyncio.Future[None]") -> None:
        """Cancel the work, and give it what is left of the lease."""
        if working.done():
            return
        working.cancel()
        rest = self._timing.duration - self._timing.deadline
        done, _ = await asyncio.wait({working}, timeout=rest)
        if not done:
            _log.error("work goes on without the lease", lease=self._name)
        elif not working.cancelled() and (error := working.exception()) is not None:
            _log.error("work ended badly", lease=self._name, exc_info=error)

    async def _release(self) -> None:
        """So that the next one need not wait; never raises."""
        found, was_leader = self._found, self.is_leader
        self._leads_until = 0.0
        if not was_leader or found is None:
            return
        body = self._body(found)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with suppress(DriverError, TimeoutError):
            async with asyncio.timeout(_RELEASE):
                await self._api.replace(LEASES, self._name, body, namespace=self._namespace)
            _log.info("lease released", lease=self._name)

    async def _rest(self) -> None:
        await asyncio.sleep(self._timing.retry * random.uniform(0.8, 1.2))  # noqa: S311 - only to spread


def _now() -> float:
    return asyncio.get_running_loop().time()


def _holder(found: dict[str, Any] | None) -> str:
    return str(((found or {}).get("spec") or {}).get("holderIdentity") or "")


def _duration(found: dict[str, Any]) -> float:
    return float((found.get("spec") or {}).get("leaseDurationSeconds") or 0)
