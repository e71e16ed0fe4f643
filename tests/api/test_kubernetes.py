"""Six verbs, and the word for each way they fail."""

import base64
import time
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from shared.errors import AlreadyExists, Busy, InvalidRequest, NotFound, NotReady
from shared.kubernetes import CONFIG_MAPS, NODES, PODS, SECRETS, Conflict, Forbidden, Kind, Kubernetes
from tests.api_server import ApiServer

MARK = "s3cr3t-mark"
Object = dict[str, Any]


def named(**metadata: Any) -> Object:
    return {"metadata": {"name": f"t-{token_hex(4)}", **metadata}}


async def made(api: Kubernetes, **metadata: Any) -> Object:
    """A ConfigMap."""
    return await api.create(CONFIG_MAPS, named(**metadata), namespace="default")


async def pod(api: Kubernetes) -> Object:
    """On a node that nobody plays."""
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeName": "n1"}
    return await api.create(PODS, named() | {"spec": spec}, namespace="default")


async def test_the_verbs(api: Kubernetes) -> None:
    """What was created is got, patched, replaced and deleted."""
    name = (await made(api))["metadata"]["name"]
    patched = await api.patch(CONFIG_MAPS, name, {"data": {"k": "v"}}, namespace="default")
    await api.replace(CONFIG_MAPS, name, patched | {"data": {"k": "w"}}, namespace="default")

    assert (await api.get(CONFIG_MAPS, name, namespace="default"))["data"] == {"k": "w"}
    await api.delete(CONFIG_MAPS, name, namespace="default")
    with pytest.raises(NotFound, match=name):
        await api.get(CONFIG_MAPS, name, namespace="default")


async def test_a_patch_removes_with_null(api: Kubernetes) -> None:
    """A merge patch: None takes a key away, and what is not said stays."""
    name = (await made(api, annotations={"a": "1", "b": "2"}))["metadata"]["name"]

    patched = await api.patch(CONFIG_MAPS, name, {"metadata": {"annotations": {"a": None}}}, namespace="default")

    assert patched["metadata"]["annotations"] == {"b": "2"}


async def test_a_subresource_is_patched(api: Kubernetes) -> None:
    name = (await pod(api))["metadata"]["name"]

    patched = await api.patch(PODS, name, {"status": {"phase": "Failed"}}, namespace="default", subresource="status")

    assert patched["status"]["phase"] == "Failed"


async def test_selectors_are_encoded(api: Kubernetes) -> None:
    """Label and field selectors may hold what a URL gives a meaning of its own."""
    mark = f"t-{token_hex(4)}"
    name = (await made(api, labels={"x.io/a": mark}))["metadata"]["name"]
    await made(api, labels={"x.io/a": "other"})

    listed = await api.list(CONFIG_MAPS, labels=f"x.io/a in ({mark},no),x.io/a!=b", fields=f"metadata.name={name}")

    assert [item["metadata"]["name"] for item in listed["items"]] == [name]


async def test_a_list_has_all_pages(api: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """More objects than fit one page are one list, with one resource version to watch from."""
    monkeypatch.setattr("shared.kubernetes._PAGE", 2)
    mark = f"t-{token_hex(4)}"
    names = {(await made(api, labels={"a": mark}))["metadata"]["name"] for _ in range(5)}

    listed = await api.list(CONFIG_MAPS, namespace="default", labels=f"a={mark}")

    assert {item["metadata"]["name"] for item in listed["items"]} == names
    assert len(listed["items"]) == 5
    assert int(listed["metadata"]["resourceVersion"])


async def test_already_exists(api: Kubernetes) -> None:
    body = await made(api)

    with pytest.raises(AlreadyExists, match=body["metadata"]["name"]):
        await api.create(CONFIG_MAPS, {"metadata": {"name": body["metadata"]["name"]}}, namespace="default")


@pytest.mark.parametrize("verb", ["patch", "replace"])
async def test_a_changed_object_is_a_conflict(api: Kubernetes, verb: str) -> None:
    """With the resource version in the body; and a conflict is Busy to who does not know better."""
    body = await made(api)
    name = body["metadata"]["name"]
    await api.patch(CONFIG_MAPS, name, {"data": {"k": "v"}}, namespace="default")

    with pytest.raises(Conflict) as caught:
        await getattr(api, verb)(CONFIG_MAPS, name, body, namespace="default")
    assert isinstance(caught.value, Busy)


@pytest.mark.parametrize("wrong", [{"uid": "1234"}, {"resource_version": "1"}])
async def test_another_object_is_not_deleted(api: Kubernetes, wrong: dict[str, Any]) -> None:
    """Neither one of another uid, nor one that has changed."""
    name = (await made(api))["metadata"]["name"]

    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAPS, name, namespace="default", **wrong)

    assert await api.get(CONFIG_MAPS, name, namespace="default")


async def test_the_right_object_is_deleted(api: Kubernetes) -> None:
    """With its uid and without grace: a pod is gone at once."""
    metadata = (await pod(api))["metadata"]

    await api.delete(PODS, metadata["name"], namespace="default", uid=metadata["uid"], grace=0)

    with pytest.raises(NotFound):
        await api.get(PODS, metadata["name"], namespace="default")


async def test_an_invalid_object_is_refused_in_words(api: Kubernetes) -> None:
    with pytest.raises(InvalidRequest, match=r"spec\.containers: Required value"):
        await api.create(PODS, named() | {"spec": {"containers": []}}, namespace="default")


@pytest.mark.parametrize(
    "wrong", [{"data": {"k": MARK}}, {"data": {MARK + "/": "eA=="}}, {"data": {"k": [MARK]}}, {"data": MARK}]
)
async def test_a_refused_secret_is_not_quoted(api: Kubernetes, wrong: Object) -> None:
    """Whatever the API server says of it."""
    with pytest.raises(InvalidRequest) as caught:
        await api.create(SECRETS, named() | wrong, namespace="default")

    assert MARK not in str(caught.value)
    assert "POST /api/v1/namespaces/default/secrets" in str(caught.value)


async def test_a_missing_right_is_named(server: ApiServer) -> None:
    """Verb and resource, so that the role can be mended."""
    async with Kubernetes.connect(kubeconfig=str(server.nobody)) as api:
        with pytest.raises(Forbidden, match=r'"nobody" cannot list resource "secrets" in API group ""'):
            await api.list(SECRETS)
        with pytest.raises(Forbidden, match="cannot watch"):
            await anext(api.watch(PODS, since="1"))


async def test_an_unknown_token_is_not_shown(server: ApiServer) -> None:
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig_with(MARK))) as api:
        with pytest.raises(Forbidden, match="does not know us") as caught:
            await api.list(NODES)

    assert MARK not in str(caught.value)


async def test_a_new_token_is_taken_up(server: ApiServer) -> None:
    """A kubeconfig is read again when its token is refused."""
    path = server.kubeconfig_with(MARK)
    async with Kubernetes.connect(kubeconfig=str(path)) as api:
        path.write_text(server.kubeconfig.read_text())

        assert await api.list(NODES)


@pytest.mark.usefixtures("account")
async def test_a_service_account() -> None:
    """In a cluster, the files of the service account and two variables say all."""
    async with Kubernetes.connect() as inside:
        with pytest.raises(Forbidden, match="system:serviceaccount:default:t-"):
            await inside.list(NODES)


async def test_a_rotated_token_is_taken_up(account: Path) -> None:
    """Also before the minute is over after which its file is read again anyway."""
    good = (account / "token").read_text()
    (account / "token").write_text(MARK)
    async with Kubernetes.connect() as inside:
        (account / "token").write_text(good)

        with pytest.raises(Forbidden, match="system:serviceaccount:default:t-"):
            await inside.list(NODES)


async def test_no_service_account(account: Path) -> None:
    """Outside of a cluster, the error says what to give."""
    (account / "token").unlink()

    with pytest.raises(InvalidRequest, match="give a kubeconfig"):
        async with Kubernetes.connect():
            pass


@pytest.mark.usefixtures("away")
async def test_away(server: ApiServer) -> None:
    """Refused connections are NotReady at once."""
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig)) as api:
        with pytest.raises(NotReady, match=r"the API server is away \(connection refused\)"):
            await api.list(NODES)


async def test_silent(server: ApiServer) -> None:
    """Nothing waits longer than its deadline."""
    async with Kubernetes.connect(kubeconfig=str(server.kubeconfig), deadline=0.5) as api:
        await api.list(NODES)
        with server.silent():
            begun = time.monotonic()
            with pytest.raises(NotReady, match=r"away \(silent for 0.5 s\)"):
                await api.list(NODES)
            assert time.monotonic() < begun + 2

        assert await api.list(NODES)


async def test_the_wrong_certificate(server: ApiServer) -> None:
    path = server.kubeconfig_with(server.tokens["admin"])
    path.write_text(path.read_text().replace(str(server.ca), "/etc/ssl/certs/ca-certificates.crt"))
    async with Kubernetes.connect(kubeconfig=str(path)) as api:
        with pytest.raises(NotReady, match="certificate is not trusted"):
            await api.list(NODES)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%2Fstatus", "../../nodes"])
async def test_a_name_is_one_part_of_a_path(api: Kubernetes, name: str) -> None:
    """No name reaches another object than its own, or another resource."""
    with pytest.raises(InvalidRequest, match="name of an object"):
        await api.delete(CONFIG_MAPS, name, namespace="default")
    with pytest.raises(InvalidRequest):
        await api.get(CONFIG_MAPS, "x", namespace=name)


@pytest.mark.parametrize("name", ["a b", "a?b=c", "a#b", "ä", "a&b", "A;b", "a\nb"])
async def test_an_odd_name_is_only_not_found(api: Kubernetes, name: str) -> None:
    with pytest.raises(NotFound):
        await api.get(CONFIG_MAPS, name, namespace="default")


async def test_a_kind_that_is_not_served(api: Kubernetes) -> None:
    with pytest.raises(NotFound):
        await api.list(Kind(path="/apis/example.com/v1", plural="things"))


async def test_a_log_of_a_pod_without_kubelet(api: Kubernetes) -> None:
    """As far as it goes without a kubelet: the API server asks the pod's node, which is not there."""
    name = (await pod(api))["metadata"]["name"]

    with pytest.raises((NotFound, NotReady, InvalidRequest), match=r"n1|node"):
        await api.log(name, namespace="default", container="c", previous=True)


async def test_secrets_are_plain_objects(api: Kubernetes) -> None:
    data = {"k": base64.b64encode(MARK.encode()).decode()}
    name = (await api.create(SECRETS, named() | {"data": data}, namespace="default"))["metadata"]["name"]

    assert (await api.get(SECRETS, name, namespace="default"))["data"] == data
