"""The port between what mountpod decides and what runs the JuiceFS clients: processes of this machine, or pods.

Ensure and close are level-triggered on both sides of it: every call may come again, late, or after a restart.
"""

from collections.abc import Mapping
from typing import Protocol

from shared.api.juicefs.v1 import EnsureRequest, MountReport
from shared.settings import ClientSettings


class Runtime(Protocol):
    """Keeps one client per mount name: starts it, watches it, replaces it when it dies, and ends it."""

    async def resolve(self, request: EnsureRequest) -> ClientSettings:
        """The settings of the client that a publish asks for.

        Raises:
            InvalidRequest: names the key or option that can't be understood.
            NotReady: something is missing that may come, such as a Secret.
        """

    async def ensure(self, settings: ClientSettings) -> None:
        """A client with these settings runs or is being started when this returns; it does not wait for its mount.

        Raises:
            CommandFailed: its last start failed, and the next is not due yet.
            NotReady: something is missing that may come, such as its credentials.
            InvalidRequest: the credentials make no file system.
            DriverError: another client has the same name.
        """

    async def restart(self, name: str) -> None:
        """Replace the client by a new process in an orderly way: no call of a workload fails.

        Raises:
            NotFound: no such client. Busy: it is starting. NotReady: the new process did not come in time.
        """

    async def end(self, name: str) -> None:
        """The client's mount is gone on purpose: see to it that the client ends too, and leaves nothing."""

    def announce_end(self, name: str, seconds: float | None) -> None:
        """Its mount will be closed in so many seconds, unless somebody comes; None: somebody came."""

    def clients(self) -> Mapping[str, ClientSettings]:
        """What runs, is being started or is being ended, by mount name."""

    def retry(self) -> None:
        """The node service has started: clients that waited for it are tried now."""

    def look(self, mounts: Mapping[str, MountReport]) -> None:
        """What the node says of its mounts, every now and then: correct what no event told, and bound what grows."""
