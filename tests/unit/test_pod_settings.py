"""What a volume's context and its claim may say of the client's pod (behaviour.md 3.1, 3.2, 3.3, 10)."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.pod_settings import PodSettings, buffer_size

DEFAULTS = PodSettings(image="mount:1", service_account="mount-sa")
LIMITS = {"limits": {"cpu": "5000m", "memory": "5Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}


def parsed(*claim: dict[str, str], **context: str) -> PodSettings:
    """Keys without their prefix, `_` for `-`."""
    keys = {f"juicefs/mount-{key.replace('_', '-')}": value for key, value in context.items()}
    return PodSettings.parse(keys, claim_annotations=dict(*claim), defaults=DEFAULTS)


def test_without_a_word_the_defaults_count() -> None:
    """The driver's own, and the resources of behaviour.md 3.1."""
    found = parsed()
    assert (found.image, found.service_account, found.resources) == ("mount:1", "mount-sa", LIMITS)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("cpu_limit", "2", ("limits", "cpu", "2")),
        ("cpu_limit", "0", ("limits", "cpu", None)),
        ("cpu_limit", "-1", ("limits", "cpu", None)),
        ("memory_limit", "0", ("limits", "memory", None)),
        ("memory_limit", " 7Gi ", ("limits", "memory", "7Gi")),
        ("cpu_request", "0", ("requests", "cpu", "0")),
        ("cpu_request", "-1", ("requests", "cpu", None)),
        ("memory_request", "1500M", ("requests", "memory", "1500M")),
        ("memory_request", "-0.5", ("requests", "memory", None)),
    ],
)
def test_a_limit_ends_at_zero_and_a_request_below_it(key: str, text: str, wanted: tuple[str, str, str | None]) -> None:
    """behaviour.md 3.1."""
    kind, resource, amount = wanted
    assert parsed(**{key: text}).resources[kind].get(resource) == amount


def test_without_any_resource_nothing_is_said_of_them() -> None:
    """No empty maps in the pod."""
    assert not parsed(cpu_limit="0", memory_limit="0", cpu_request="-1", memory_request="-1").resources


def test_a_default_request_is_not_above_a_chosen_limit() -> None:
    """Kubernetes would refuse the pod for a request that nobody wrote."""
    found = parsed(cpu_limit="500m", memory_limit="300Mi").resources
    assert found["requests"] == {"cpu": "500m", "memory": "300Mi"}


@pytest.mark.parametrize("key", ["cpu_limit", "memory_limit", "cpu_request", "memory_request"])
@pytest.mark.parametrize("text", ["much", "1 Gi", "1GiB", "1e999", "٣"])
def test_a_bad_quantity_is_refused_by_its_key(key: str, text: str) -> None:
    """Issue 4: malformed values name the key."""
    with pytest.raises(InvalidRequest, match=f"juicefs/mount-{key.replace('_', '-')}"):
        parsed(**{key: text})


def test_a_claim_may_set_its_resources_and_nothing_else() -> None:
    """behaviour.md 3.2: its annotations come after the volume's context."""
    claim = {"juicefs/mount-cpu-limit": "3", "juicefs/mount-image": "evil", "juicefs/mount-service-account": "admin"}
    found = parsed(claim, cpu_limit="2")
    assert (found.resources["limits"]["cpu"], found.image, found.service_account) == ("3", "mount:1", "mount-sa")


def test_a_claim_with_a_bad_quantity_is_refused() -> None:
    """By the same key."""
    with pytest.raises(InvalidRequest, match="juicefs/mount-memory-request"):
        parsed({"juicefs/mount-memory-request": "lots"})


@pytest.mark.parametrize(
    ("key", "text"),
    [("image", "a b"), ("image", "-x"), ("image", "a;b"), ("service_account", "Admin"), ("service_account", "a/b")],
)
def test_a_bad_name_is_refused_by_its_key(key: str, text: str) -> None:
    """Neither image nor account is free text."""
    with pytest.raises(InvalidRequest, match=f"juicefs/mount-{key.replace('_', '-')}"):
        parsed(**{key: text})


def test_image_and_account_of_the_volume_win() -> None:
    """behaviour.md 3.1."""
    found = parsed(image="r.example:5000/a/mount:ce-v1.4.2@sha256:0", service_account="other")
    assert (found.image, found.service_account) == ("r.example:5000/a/mount:ce-v1.4.2@sha256:0", "other")


@pytest.mark.parametrize(
    "text", ['{"app.example/a": "1", "b": ""}', "app.example/a: 1\nb: ''", "{app.example/a: '1', b: }"]
)
@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_labels_and_annotations_are_json_or_yaml(key: str, text: str) -> None:
    """What looks like a number in YAML is the text that was written."""
    assert getattr(parsed(**{key: text}), key) == {"app.example/a": "1", "b": ""}


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.from_regex(r"[A-Za-z0-9]{0,9}", fullmatch=True))
)
def test_labels_survive_both_spellings(labels: dict[str, str]) -> None:
    """JSON and YAML say the same."""
    assert parsed(labels=json.dumps(labels)).labels == parsed(labels=yaml.safe_dump(labels)).labels == labels


@pytest.mark.parametrize(
    "text",
    ["a", "[1]", '{"a": 1}', '{"a": {"b": "c"}}', "a: [b]", "{", "[" * 5000,
     '{"a":' * 3000, f"a: {'x' * 20000}", "&a [*a]"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_what_is_no_map_of_texts_is_refused(key: str, text: str) -> None:
    """By its key, whatever it is (promise 24)."""
    with pytest.raises(InvalidRequest, match=f"juicefs/mount-{key}"):
        parsed(**{key: text})


@pytest.mark.parametrize(("key", "text"), [("labels", "a b: c"), ("labels", "a: b c"), ("annotations", "a/b/c: d")])
def test_what_kubernetes_takes_for_none_is_refused(key: str, text: str) -> None:
    """Before the API server refuses a pod that the user never wrote."""
    with pytest.raises(InvalidRequest, match=f"juicefs/mount-{key}"):
        parsed(**{key: text})


def test_caches_are_volumes_of_the_pod() -> None:
    """behaviour.md 10, in its order: claims, an empty directory, then the paths of the option."""
    found = parsed(cache_pvc="fast, big", cache_emptydir="Memory:1Gi").with_cache_directories("/a:/b:memory:/a")
    paths = ["/var/jfsCache-0", "/var/jfsCache-1", "/var/jfsCache-emptyDir", "/a", "/b"]
    assert [cache.path for cache in found.caches] == paths
    assert [next(iter(cache.source)) for cache in found.caches] == [
        "persistentVolumeClaim", "persistentVolumeClaim", "emptyDir", "hostPath", "hostPath",
    ]  # fmt: skip
    assert found.caches[2].source == {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    assert found.cache_option("/a:/b:memory:/a") == ":".join(paths)


def test_without_a_cache_the_clients_own_is_on_the_host() -> None:
    """And the option is left to the client."""
    found = parsed().with_cache_directories("")
    assert [cache.source for cache in found.caches] == [
        {"hostPath": {"path": "/var/jfsCache", "type": "DirectoryOrCreate"}}
    ]
    assert found.cache_option("") == ""


def test_a_cache_in_memory_needs_no_volume() -> None:
    """`memory` passes through."""
    found = parsed().with_cache_directories("memory")
    assert (found.caches, found.cache_option("memory")) == ((), "memory")


def test_no_path_is_mounted_twice() -> None:
    """A pod whose mounts have one path is refused by Kubernetes."""
    found = parsed(cache_emptydir=":10Gi").with_cache_directories("/var/jfsCache-emptyDir:/a:/a/")
    assert [cache.path for cache in found.caches] == ["/var/jfsCache-emptyDir", "/a"]


@pytest.mark.parametrize("text", ["Disk", "Memory:lots", "memory:1Gi"])
def test_a_bad_empty_directory_is_refused(text: str) -> None:
    """By its key."""
    with pytest.raises(InvalidRequest, match="juicefs/mount-cache-emptydir"):
        parsed(cache_emptydir=text)


@pytest.mark.parametrize("text", ["../x", "A B", "a/b", "a,,b/"])
def test_a_bad_claim_for_a_cache_is_refused(text: str) -> None:
    """By its key."""
    with pytest.raises(InvalidRequest, match="juicefs/mount-cache-pvc"):
        parsed(cache_pvc=text)


@pytest.mark.parametrize("path", ["/", "//", "etc", "/a/../b", "/a:/b", "/a\nb", "/" + "x" * 5000])
def test_a_path_of_the_host_is_plain(path: str) -> None:
    """Promise 21."""
    with pytest.raises(InvalidRequest, match="juicefs/host-path"):
        PodSettings.parse({"juicefs/host-path": path}, claim_annotations={}, defaults=DEFAULTS)
    with pytest.raises(InvalidRequest, match="cache-dir"):
        parsed().with_cache_directories(path.replace("/a:/b", "/a:b"))


def test_an_inline_volume_is_not_supported_and_said_so() -> None:
    """Issue 4 leaves it out; silence would lose a cache."""
    with pytest.raises(InvalidRequest, match="juicefs/mount-cache-inline-volume"):
        parsed(cache_inline_volume="[]")


@pytest.mark.parametrize(
    ("option", "limit", "size"),
    [
        ("300", "5Gi", "300"),
        ("300M", "5Gi", "300M"),
        ("4G", "5Gi", "4G"),
        ("6G", "5Gi", "5120"),
        ("6000", "5Gi", "5120"),
        ("2g", "1Gi", "1024"),
        ("50%", "1Gi", "512"),
        ("30%", "1Gi", "308"),
        ("150%", "1Gi", "1024"),
        ("9999999999", "", "9999999999"),
        ("50%", "", "50%"),
        ("lots", "5Gi", ""),
        ("", "5Gi", ""),
        ("1e3", "5Gi", ""),
    ],
)
def test_a_buffer_is_not_above_the_memory_limit(option: str, limit: str, size: str) -> None:
    """behaviour.md 3.3: clamped, in MiB; what can't be read is dropped; without a limit nothing changes."""
    assert buffer_size(option, {"limits": {"memory": limit}} if limit else {}) == size


@pytest.mark.parametrize(
    "change",
    [{"image": "x"}, {"service_account": "x"}, {"cpu_limit": "1"}, {"labels": "a: b"}, {"annotations": "a: b"},
     {"cache_pvc": "x"}, {"cache_emptydir": ":1Gi"}],
)  # fmt: skip
def test_other_settings_are_another_pod(change: dict[str, str]) -> None:
    """behaviour.md 4.3: all of it is in the digest."""
    assert parsed(**change).digest != parsed().digest
