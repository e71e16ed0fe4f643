"""The configuration file, read again when it changes: a ConfigMap is mounted, and its volume is what changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from shared.errors import DriverError, InvalidRequest
from shared.pod_patch import Configuration

_PERIOD: Final = 5.0

_log = structlog.get_logger()


class ConfigurationFile:
    """`changed` hears each configuration that can be read; one that can't is said, and changes nothing."""

    def __init__(self, path: Path | None, changed: Callable[[Configuration], None]) -> None:
        self._path = path
        self._changed = changed
        self._text = ""

    def read(self) -> None:
        """Look once.

        Raises:
            InvalidRequest: what is wrong with it.
        """
        if self._path is None:
            return
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"the configuration {self._path} can't be read: {error}") from None
        if text != self._text:
            self._text = text
            self._changed(Configuration.parse(text))

    async def run(self) -> None:
        """Look every five seconds, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                self.read()
            except DriverError as error:
                _log.error("configuration not taken", cause=str(error))
