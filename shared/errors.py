"""What can go wrong, in the driver's own words, with the gRPC status that each word becomes.

    DriverError (INTERNAL)
    ├── InvalidRequest (INVALID_ARGUMENT)   the caller must change the request
    ├── NotFound (NOT_FOUND)
    ├── AlreadyExists (ALREADY_EXISTS)      the same name, incompatible
    ├── OutOfRange (OUT_OF_RANGE)           a capacity that can't be had
    ├── InUse (FAILED_PRECONDITION)         something else must happen first
    ├── Busy (ABORTED)                      another call works on the same thing
    ├── NotReady (UNAVAILABLE)              try again: what is missing is named
    └── CommandFailed (FAILED_PRECONDITION) the JuiceFS client refused, with its class and last line

The status is a class attribute, so that `shared.rpc` (gRPC) and `shared.bus` (NATS) translate in one line each.
A message says what to look at next, and never holds a secret.
"""

from typing import ClassVar


class DriverError(Exception):
    """Anything the driver refuses or fails to do."""

    status: ClassVar[str] = "INTERNAL"


class InvalidRequest(DriverError):
    """The request can't be carried out as it is written."""

    status = "INVALID_ARGUMENT"


class NotFound(DriverError):
    """The thing that was named does not exist."""

    status = "NOT_FOUND"


class AlreadyExists(DriverError):
    """The name is taken by something incompatible."""

    status = "ALREADY_EXISTS"


class OutOfRange(DriverError):
    """No capacity within the limits that were given."""

    status = "OUT_OF_RANGE"


class InUse(DriverError):
    """The state of the system forbids it until something else happens."""

    status = "FAILED_PRECONDITION"


class Busy(DriverError):
    """Another call works on the same volume or target."""

    status = "ABORTED"


class NotReady(DriverError):
    """Something that is needed is away; the same call may succeed later."""

    status = "UNAVAILABLE"


class CommandFailed(DriverError):
    """The JuiceFS client ended with an error.

    `reason` is its class (META_UNREACHABLE, META_AUTH, …; `shared.diagnosis`), the message holds its last line.
    """

    status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, reason: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.reason = reason


BY_NAME: dict[str, type[DriverError]] = {
    cls.__name__: cls
    for cls in (DriverError, InvalidRequest, NotFound, AlreadyExists, OutOfRange, InUse, Busy, NotReady, CommandFailed)
}
"""The words that may cross the bus (`shared.bus` sends the name, the other side raises it again)."""
