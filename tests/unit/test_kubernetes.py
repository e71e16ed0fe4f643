"""Where no API server needs to be asked, or where a real one can't be made to answer so."""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from shared.errors import AlreadyExists, InvalidRequest, NotReady
from shared.kubeconfig import own_namespace
from shared.kubernetes import NODES, Conflict, Kubernetes

MARK = "s3cr3t-mark"
IMPORTED = """
import sys
import shared.informer, shared.kubernetes, shared.lease, shared.recorder
print(*sorted(name for name in sys.modules if name.startswith("kubernetes_asyncio.client.")))
"""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(answer: Answer, directory: Path) -> AsyncIterator[Kubernetes]:
    """Something that answers in the API server's place, over plain HTTP."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    path = kubeconfig(directory, server=f"http://127.0.0.1:{runner.addresses[0][1]}/prefix")
    try:
        async with Kubernetes.connect(kubeconfig=str(path), deadline=3) as api:
            yield api
    finally:
        await runner.cleanup()


def kubeconfig(directory: Path, *, server: str = "https://127.0.0.1:1", **user: object) -> Path:
    path = directory / "kubeconfig"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": MARK, **user}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_bytes(orjson.dumps(config))
    return path


def test_no_model_is_imported() -> None:
    """kubernetes_asyncio's model classes take 40 MiB, and nothing of ours uses them."""
    imported = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)

    assert imported.stdout.split() == [
        "kubernetes_asyncio.client.configuration",
        "kubernetes_asyncio.client.exceptions",
    ]


@pytest.mark.parametrize("wrong", ["", "{", "clusters: []", "- a", "users: [{token: s3cr3t-mark}]\ncurrent-context: x"])
async def test_a_wrong_kubeconfig_is_named_not_quoted(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(wrong)

    with pytest.raises(InvalidRequest, match="kubeconfig: no access to Kubernetes") as caught:
        async with Kubernetes.connect(kubeconfig=str(path)):
            pass
    assert MARK not in str(caught.value)


async def test_a_wrong_user_is_not_quoted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its loader's errors quote users with their tokens, and it logs them."""
    path = kubeconfig(tmp_path, exec={"command": "/no/such/program", "apiVersion": MARK})

    with pytest.raises(InvalidRequest) as caught:
        async with Kubernetes.connect(kubeconfig=str(path)):
            pass
    assert MARK not in str(caught.value)
    assert MARK not in "".join(capfd.readouterr())


async def test_a_missing_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="FileNotFoundError"):
        async with Kubernetes.connect(kubeconfig=str(tmp_path / "none")):
            pass


async def test_no_key_is_left_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS reads keys from files only, so they are put into one for a moment."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = kubeconfig(tmp_path, **{"client-certificate-data": "eA==", "client-key-data": "eA=="})

    with pytest.raises(InvalidRequest, match="SSLError"):
        async with Kubernetes.connect(kubeconfig=str(path)):
            pass
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_a_crowded_api_server_is_asked_again(tmp_path: Path) -> None:
    """429 says that nothing was done; its Retry-After is kept."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if len(asked) == 1:
            return web.json_response({"message": "too many"}, status=429, headers={"Retry-After": "0"})
        return web.json_response({"metadata": {"name": "n"}})

    async with answering(answer, tmp_path) as api:
        assert await api.get(NODES, "n") == {"metadata": {"name": "n"}}
    assert asked == ["/prefix/api/v1/nodes/n"] * 2


async def test_too_crowded_for_too_long(tmp_path: Path) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({}, status=429, headers={"Retry-After": "3600"})

    async with answering(answer, tmp_path) as api:
        with pytest.raises(NotReady, match="silent for 3 s"):
            await api.get(NODES, "n")


@pytest.mark.parametrize("status", [200, 302, 500, 503])
async def test_something_else_answers(tmp_path: Path, status: int) -> None:
    """A proxy's page is no object, and a redirect would take our token elsewhere."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="<html>", status=status, headers={"Location": "/elsewhere"})

    async with answering(answer, tmp_path) as api:
        with pytest.raises(NotReady, match="the API server is away"):
            await api.get(NODES, "n")


@pytest.mark.parametrize(("reason", "word"), [("AlreadyExists", AlreadyExists), ("Conflict", Conflict)])
async def test_two_kinds_of_conflict(tmp_path: Path, reason: str, word: type[Exception]) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"reason": reason, "message": "m"}, status=409)

    async with answering(answer, tmp_path) as api:
        with pytest.raises(word, match="m"):
            await api.create(NODES, {})


async def test_a_long_line_in_pieces(tmp_path: Path) -> None:
    """An object may be larger than any buffer, and two may come at once."""
    line = orjson.dumps({"type": "ADDED", "object": {"metadata": {"name": "n" * 3_000_000}}}) + b"\n"

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(line + line[:100])
        await response.write(line[100:])
        return response

    async with answering(answer, tmp_path) as api:
        assert [len(event.object) async for event in api.watch(NODES, since="1")] == [len(line) - 27] * 2


async def test_an_error_in_a_watch(tmp_path: Path) -> None:
    """It comes as an event, with the status of what would have been refused."""

    async def answer(_request: web.Request) -> web.Response:
        error = {"type": "ERROR", "object": {"code": 504, "message": "m", "details": {"retryAfterSeconds": 1}}}
        return web.Response(body=orjson.dumps(error) + b"\n")

    async with answering(answer, tmp_path) as api:
        with pytest.raises(NotReady, match=r"the API server is away \(m\)"):
            await anext(api.watch(NODES, since="1"))


async def test_the_token_is_in_no_error(tmp_path: Path) -> None:
    """Nor in a cause or context of one, which a traceback would show."""
    path = kubeconfig(tmp_path, token=f"{MARK}\n{MARK}")
    async with Kubernetes.connect(kubeconfig=str(path)) as api:
        with pytest.raises(NotReady) as caught:
            await api.list(NODES)

    assert MARK not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_no_such_host(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, server="https://no-such-host.invalid")
    async with Kubernetes.connect(kubeconfig=str(path)) as api:
        with pytest.raises(NotReady, match="its name is not known"):
            await api.list(NODES)


def test_the_namespace_outside_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.kubeconfig.SERVICE_ACCOUNT", tmp_path)
    assert own_namespace() == "kube-system"

    (tmp_path / "namespace").write_text("here\n")
    assert own_namespace() == "here"
