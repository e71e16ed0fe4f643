import pytest

from shared.api.juicefs.v1 import ClientExited
from shared.bus import Bus
from shared.connection import Address
from shared.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("nats://h:4222", (["nats://h:4222"], None, None)),
        ("h:4222", (["nats://h:4222"], None, None)),
        ("nats://u:p%40ss@h:1", (["nats://h:1"], "u", "p@ss")),
        ("nats://token@h", (["nats://h"], "token", None)),
        ("tls://u:p@a:1,tls://b:2", (["tls://a:1", "tls://b:2"], "u", "p")),
        ("nats://u:p@[::1]:4222", (["nats://[::1]:4222"], "u", "p")),
    ],
)
def test_an_address_knows_its_parts(url: str, parts: tuple[list[str], str | None, str | None]) -> None:
    """User and password leave the URL, whatever characters they have."""
    found = Address.parse(url)

    assert (found.servers, found.user, found.password) == parts


@pytest.mark.parametrize(
    ("url", "inbox"),
    [("nats://node:pw@h", "_INBOX.node"), ("nats://token@h", "_INBOX"), ("h", "_INBOX"), ("nats://a.b:pw@h", "_INBOX")],
)
def test_each_user_has_an_inbox(url: str, inbox: str) -> None:
    """NATS can then keep one service from hearing the answers to another; a token is no name, and stays unsaid."""
    assert Address.parse(url).inbox == inbox


def test_tls_may_have_an_authority_of_its_own() -> None:
    """Of a cluster that signs its own certificates; a file that is not there is told by its name."""
    address = Address.parse("tls://u:p@h:4222?ca=/nonexistent/ca.crt")

    assert (address.servers, address.ca) == (["tls://h:4222"], "/nonexistent/ca.crt")
    with pytest.raises(FileNotFoundError):
        _ = address.trust
    assert Address.parse("nats://h").trust is None


@pytest.mark.parametrize(
    "url", ["", "nats://", "nats://u:hunter2@", "nats://u:hunter2@h:port", "nats://hunter2@h:99999"]
)
def test_a_wrong_address_is_refused_without_showing_it(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(InvalidRequest, match="nats://host:port") as caught:
        Address.parse(url)

    assert "hunter2" not in str(caught.value)


def test_an_address_never_shows_its_password() -> None:
    """Neither printed nor in an error."""
    address = Address.parse("nats://u:hunter2@h:1")

    assert "hunter2" not in f"{address} {address!r}"


@pytest.mark.parametrize("node", ["a b", "*", ">", "a..b", ".a", "a.", "a\n"])
def test_a_node_that_is_no_part_of_a_subject_is_refused(node: str) -> None:
    """Else its events would go astray, or everyone's would be heard."""
    with pytest.raises(InvalidRequest, match="node"):
        Bus(url="nats://h", service="node", node=node)


@pytest.mark.parametrize("text", ["x" * 100_000, "caf\udce9"])
def test_an_event_that_cannot_be_sent_harms_nobody(text: str) -> None:
    """It would be in the way of all that come after it."""
    bus = Bus(url="nats://h", service="node", node="n1")
    bus.say(ClientExited(last_line=text), volume_id="v1")

    assert bus.unsent == 0


def test_a_node_may_have_dots() -> None:
    """As machines in a cloud do."""
    assert Bus(url="nats://h", service="node", node="ip-10-0-0-1.ec2.internal").node == "ip-10-0-0-1.ec2.internal"
