"""Six verbs, and the word for each way they fail."""

from secrets import token_hex
from typing import Any

import pytest

from shared.errors import NotFound
from shared.kubernetes import (
    CONFIG_MAPS,
    Kubernetes,
)

MARK = "s3cr3t-mark"


def named(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": f"t-{token_hex(4)}", **metadata}}


async def made(api: Kubernetes, **metadata: Any) -> dict[str, Any]:
    """A ConfigMap."""
    return await api.create(CONFIG_MAPS, named(**metadata), namespace="default")


async def test_the_verbs(api: Kubernetes) -> None:
    """What was created is got, listed, patched, replaced and deleted."""
    name = (await made(api, labels={"a": "b"}))["metadata"]["name"]
    patched = await api.patch(CONFIG_MAPS, name, {"data": {"k": "v"}}, namespace="default")
    await api.replace(CONFIG_MAPS, name, patched | {"data": {"k": "w"}}, namespace="default")

    assert (await api.get(CONFIG_MAPS, name, namespace="default"))["data"] == {"k": "w"}
    listed = await api.list(CONFIG_MAPS, labels="a=b", fields=f"metadata.name={name}")
    assert [item["metadata"]["name"] for item in listed["items"]] == [name]
    await api.delete(CONFIG_MAPS, name, namespace="default")
    with pytest.raises(NotFound, match=name):
        await api.get(CONFIG_MAPS, name, namespace="default")
