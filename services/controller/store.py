"""What provisioner, reclaimer and resizer work on."""

from dataclasses import dataclass, field

from services.controller.credentials import Credentials
from services.controller.used import Used
from services.controller.volumes import Volumes
from shared.events import Say


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Volumes in file systems, the Secrets that open these, who uses what, and whom to tell."""

    volumes: Volumes
    credentials: Credentials
    say: Say
    used: Used = field(default_factory=Used)
