"""What every case gets, and what is shown of it. Nothing is collected here but by scripts/e2e, which has a cluster."""

import os
import re
import time
from collections.abc import AsyncIterator, Generator

import pytest

from shared.kubernetes import Kubernetes
from tests.e2e.case import Case
from tests.e2e.cluster import Cluster, kubectl
from tests.e2e.diagnosis import diagnose

MACHINE = os.environ.get("E2E_MACHINE")
collect_ignore_glob = [] if MACHINE is not None else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "alone: it disturbs other cases, or they would disturb it",
        "last: it looks at what all the others left",
        "machine: it does things to the machine of the one-node cluster",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("machine") and not MACHINE:
            item.add_marker(pytest.mark.skip(reason="only on the machine of the one-node cluster"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report has the case's figures; the fixture knows whether there is something to explain."""
    if call.when == "call" and isinstance(case := item.funcargs.get("case"), Case):
        item.user_properties += [("figure", figure) for figure in case.figures]
    report = yield
    item.stash.setdefault(FAILED, []).extend([report.when] * report.failed)
    return report


FAILED = pytest.StashKey[list[str]]()


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """How long each case took, beside its name."""
    if report.when != "call" or not report.passed:
        return None
    figures = "; ".join(str(value) for name, value in report.user_properties if name == "figure")
    return "passed", ".", f"PASSED in {report.duration:.0f} s{figures and f': {figures}'}"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Kubernetes.connect(kubeconfig=os.environ["KUBECONFIG"]) as api:
        yield Cluster(api=api, machine=MACHINE or "")


@pytest.fixture
async def case(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    """A namespace of its own, and nothing of it is left afterwards."""
    redis = ("redis-cli", "INCR", "case")
    database = int(await cluster.exec("deployment/redis", *redis, namespace="juicefs-e2e", container="redis"))
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    case = Case(cluster=cluster, namespace=f"e{database}-{words[:36].strip('-')}", database=database)
    await kubectl("create", "namespace", case.namespace)
    started = time.time()
    yield case
    try:
        if request.node.stash.get(FAILED, []):
            print(await diagnose(case, since=started))
    finally:
        await case.close()
