"""Pods promise what every runtime does (`tests/contract/test_runtime.py`), with a kubelet that is quick."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import AsyncMock

import pytest

from services.mountpod.pods import Pods
from shared.errors import DriverError, NotFound
from shared.kubernetes import PODS, Kubernetes
from shared.manifests import CLIENT, MOUNT
from shared.settings import ClientSettings
from tests.api.mounting import Stage, container, staged
from tests.contract.test_runtime import (  # noqa: F401 - collected here, too
    test_a_client_asked_for_while_it_ends_starts_again,
    test_a_client_is_started_once,
    test_a_client_that_is_mounted_is_not_ended,
    test_a_client_whose_mount_was_closed_ends,
    test_a_look_at_nothing_and_at_something,
    test_a_restart_of_what_is_not_there,
    test_one_start_per_back_off_step,
)
from tests.waiting import until


class _Waited(Pods):
    """As the node asks: it waits for the mount of what it asked for."""

    stage: Stage

    async def ensure(self, settings: ClientSettings) -> None:
        name = settings.mount_name
        if not self.stage.node.devices.get(name):
            self.stage.node.expected.add(name)
        try:
            await super().ensure(settings)
        except DriverError:
            self.stage.node.expected.discard(name)
            raise


class Served:
    """Implements the suite's `Stage`: a client is mounted when its pod runs."""

    def __init__(self, stage: Stage, settings: ClientSettings) -> None:
        self._stage, self._settings = stage, settings
        self._is_hopeless = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Pods]:
        async with self._stage.leading(_Waited) as pods:
            assert isinstance(pods, _Waited)
            pods.stage = self._stage
            if self._is_hopeless:
                said = AsyncMock(return_value="database is not formatted")
                self._stage.cluster.maker.log = said  # type: ignore[method-assign]
            kubelet = asyncio.create_task(self._kubelet())
            try:
                yield pods
            finally:
                kubelet.cancel()
                await asyncio.wait({kubelet})

    def wanted(self) -> ClientSettings:
        return self._settings

    def hopeless(self) -> ClientSettings:
        self._is_hopeless = True
        return self._settings

    def starts(self, name: str) -> int:
        return [said.mount for said in self._stage.bus.said if said.client_starting is not None].count(name)

    def is_mounted(self, name: str) -> bool:
        return bool(self._stage.node.devices.get(name))

    async def close(self, name: str) -> None:
        self._stage.node.expected.discard(name)
        self._stage.node.unmount(name)

    async def _kubelet(self) -> None:
        """It takes two looks until something happens: the suite wants to see what starts."""
        seen = set[str]()
        while True:
            pods = await self._stage.pods()
            for pod in pods:
                if pod["metadata"]["uid"] in seen:
                    with suppress(NotFound):
                        await self._sync(pod)
            seen = {pod["metadata"]["uid"] for pod in pods}
            await asyncio.sleep(0.1)

    async def _sync(self, pod: dict[str, Any]) -> None:
        name, node = pod["metadata"]["annotations"][MOUNT], self._stage.node
        if "deletionTimestamp" in pod["metadata"]:
            await self._stage.remove(pod)
        elif self._is_hopeless:
            await self._stage.kubelet_says(pod=pod, **container(terminated={"exitCode": 1}))
            node.expected.discard(name)
        elif not pod["status"].get("containerStatuses"):
            await self._stage.kubelet_says(pod=pod, **container(running={}))
            node.devices[name] = "0:50"
            node.expected.discard(name)


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Served]:
    async with staged(api) as found:
        async with found.leading():
            plan = await found.cluster.planner.plan(found.handle, node="n1")
        yield Served(found, plan.settings)


async def test_a_pod_with_other_settings_is_not_shared(api: Kubernetes) -> None:
    """Promise 20: six letters that are equal by chance, or a client that was made anew of other objects."""
    async with staged(api) as found, found.leading():
        await found.serve()
        (pod,) = await found.pods()
        others = {"metadata": {"annotations": {CLIENT: "0" * 64}}}
        await api.patch(PODS, pod["metadata"]["name"], others, namespace=found.name)
        await until(lambda: found.known()[0].metadata.annotations[CLIENT] == "0" * 64)
        with pytest.raises(DriverError, match="other settings"):
            await found.ensure("p2")
