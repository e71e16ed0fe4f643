"""The pods of all nodes: who leads, which nodes there are, and a configuration that changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from services.mountpod import leading
from services.mountpod.leading import Duties
from shared.errors import Busy, InvalidRequest, NotReady
from shared.kubernetes import LEASES, NODES, PODS, Kubernetes
from shared.layout import Layout
from shared.lease import Lease, Timing
from shared.objects import Pod
from shared.pod_settings import PodSettings
from tests.api.mounting import Stage, staged
from tests.api_server import ApiServer
from tests.waiting import until


@pytest.fixture
async def stage(api: Kubernetes) -> AsyncIterator[Stage]:
    async with staged(api) as found, _node(api):
        yield found


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that is looked at often."""
    monkeypatch.setattr("services.mountpod.configured._PERIOD", 0.05)
    return tmp_path / "config.yaml"


class Program:
    """A mountpod as it runs: with its Lease, its nodes and its configuration."""

    def __init__(self, stage: Stage, server: ApiServer, *, configuration: Path | None = None) -> None:
        self.missing: list[str | None] = []
        self.stage = stage
        self.duties = Duties(
            defaults=PodSettings(image="mount:1"),
            layout=Layout(),
            configuration=configuration,
            namespace=stage.name,
            identity=f"m{id(self)}",
            kubeconfig=str(server.kubeconfig),
        )
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(leading.run(self.duties, bus=self.stage.bus, standing=self.missing.append))

    async def leads(self) -> None:
        await until(lambda: len(self.missing) >= 3 and self.missing[-1] is None, within=30)
        await until(lambda: "juicefs.rpc.mountpod.n1.Ensure" in self.stage.bus._served)

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})


@asynccontextmanager
async def _running(program: Program) -> AsyncIterator[Program]:
    program.start()
    try:
        await program.leads()
        yield program
    finally:
        await program.end()


async def test_another_leads_when_the_first_ends(stage: Stage, server: ApiServer) -> None:
    """With the pods that are there: nothing is made anew, and the standby knew them before."""
    first, second = Program(stage, server), Program(stage, server)
    async with _running(first):
        name = await stage.serve()
        second.start()
        await until(lambda: second.missing == [None])
    before = [pod["metadata"]["uid"] for pod in await stage.pods()]
    try:
        await second.leads()
        assert await stage.ensure("p2") == name
        assert [pod["metadata"]["uid"] for pod in await stage.pods()] == before
        lease = await stage.api.get(LEASES, leading.LEASE, namespace=stage.name)
        assert lease["spec"]["holderIdentity"] == second.duties.identity
    finally:
        await second.end()


async def test_a_node_that_goes_and_comes_back(stage: Stage, server: ApiServer) -> None:
    """Its pods are looked after again; meanwhile what happens to them disturbs nobody."""
    async with _running(Program(stage, server)):
        name = await stage.serve()
        (old,) = await stage.pods()
        await stage.api.delete(NODES, "n1")
        await until(lambda: "juicefs.rpc.mountpod.n1.Ensure" not in stage.bus._served)
        await stage.remove(old)
        await asyncio.wait({asyncio.create_task(_quiet(stage))})
        assert not await stage.pods()
        with pytest.raises(NotReady, match="nobody answers"):
            await stage.ensure()
        async with _node(stage.api):
            (new,) = await stage.until_pods(1)
        assert new["metadata"]["annotations"]["juicefs.com/mount"] == name


async def test_another_configuration_is_for_the_next_publish(stage: Stage, server: ApiServer, file: Path) -> None:
    """Promise 19: the nodes are told, the next client has it, the one before keeps its binds."""
    file.write_text("mountPodPatch: []")
    async with _running(Program(stage, server, configuration=file)):
        first = await stage.serve()
        stage.bus.said.clear()
        file.write_text("mountPodPatch: [{labels: {team: '${VOLUME_ID}'}}]")
        await until(lambda: "MountSuperseded" in stage.bus.kinds())
        second = await _asked_anew(stage, first)
        pods = {pod["metadata"]["annotations"]["juicefs.com/mount"]: pod for pod in await stage.until_pods(2)}
    assert pods[second]["metadata"]["labels"]["team"] == stage.handle
    assert "team" not in pods[first]["metadata"]["labels"]


async def test_an_upgrade_takes_the_configuration_of_now(
    stage: Stage, server: ApiServer, *, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changed it and asks for an upgrade need not know how often the file is looked at."""
    monkeypatch.setattr("services.mountpod.configured._PERIOD", 60.0)
    async with _running(Program(stage, server, configuration=file)):
        name = await stage.serve()
        file.write_text("mountPodPatch: [{ceMountImage: 'mount:2'}]")
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(_restarted(stage, name))
            images = {pod["spec"]["containers"][0]["image"] for pod in await stage.until_pods(2)}
            asking.cancel()
    assert images == {"mount:1", "mount:2"}


@pytest.mark.parametrize("how", ["refuses", "is silent"])
async def test_who_asks_hears_that_the_api_server_is_away(
    stage: Stage, server: ApiServer, *, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The Lease is lost then, and nobody else has it: the answer comes from who had it. It goes on afterwards."""
    monkeypatch.setattr(leading, "Lease", partial(Lease, timing=Timing(duration=3, deadline=2.0, retry=0.3)))
    async with _running(Program(stage, server)):
        with server.silent() if how == "is silent" else server.killed():
            await _until_refused(stage, "the lease mountpod.juicefs.com was lost: ")
        async with asyncio.timeout(20):
            while not await stage.pods():
                with suppress(NotReady):
                    await stage.ensure()


async def test_a_wrong_configuration_changes_nothing(stage: Stage, server: ApiServer, file: Path) -> None:
    """behaviour.md 7: the one before is kept."""
    file.write_text("mountPodPatch: [{ceMountImage: 'mount:2'}]")
    async with _running(Program(stage, server, configuration=file)):
        file.write_text("mountPodPatch: [{ceMountImage: 3}]")
        await _quiet(stage)
        await stage.ensure()
    (pod,) = await stage.pods()
    assert pod["spec"]["containers"][0]["image"] == "mount:2"


async def test_a_wrong_configuration_at_the_start_ends_it(stage: Stage, server: ApiServer, file: Path) -> None:
    """behaviour.md 7: it is fatal, and says where."""
    file.write_text("mountPodPatch: [{ceMountImage: 3}]")
    with pytest.raises(InvalidRequest, match="ceMountImage"):
        await leading.run(Program(stage, server, configuration=file).duties, bus=stage.bus, standing=lambda _: None)


async def test_what_was_made_and_never_seen_is_forgotten(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that came and went between two connections: the API server never tells of it."""
    monkeypatch.setattr("services.mountpod.pod_index._UNSEEN", 0.2)
    async with stage.leading():
        name = await stage.serve()
        (pod,) = await stage.pods()
        ghost = {**pod, "metadata": {**pod["metadata"], "uid": "ghost", "name": "ghost"}}
        stage.cluster.index.put(ghost)
        assert "ghost" in _uids(stage.cluster.index.of("n1", name))
        await until(lambda: _uids(stage.cluster.index.of("n1", name)) == [pod["metadata"]["uid"]])


def _uids(pods: list[Pod]) -> list[str]:
    return [pod.metadata.uid for pod in pods]


async def _asked_anew(stage: Stage, before: str) -> str:
    """A crowd shares an answer for a second."""
    async with asyncio.timeout(10):
        while (name := await stage.ensure("p2")) == before:
            await asyncio.sleep(0.1)
    return name


async def _quiet(stage: Stage) -> None:
    """As long as it takes to hear of something, several times."""
    for _ in range(10):
        await stage.api.list(PODS, namespace=stage.name)
        await asyncio.sleep(0.05)


@asynccontextmanager
async def _node(api: Kubernetes) -> AsyncIterator[None]:
    await api.create(NODES, {"metadata": {"name": "n1"}})
    try:
        yield
    finally:
        for node in (await api.list(NODES))["items"]:
            await api.delete(NODES, node["metadata"]["name"])


async def _until_refused(stage: Stage, words: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await stage.ensure()
            except NotReady as refusal:
                if words in str(refusal):
                    return
            await asyncio.sleep(0.05)


async def _restarted(stage: Stage, name: str) -> None:
    """As soon as mountpod knows that the client runs."""
    while True:
        with suppress(Busy):
            await stage.restart(name)
            return
        await asyncio.sleep(0.05)
