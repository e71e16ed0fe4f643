"""Brings a file system to what its Secret says: made when it is new, and with the keys that are valid today.

`juicefs format` takes keys from the environment only for a new file system; one that exists keeps the keys it has, so
rotated keys are noticed here and stored.
"""

import re

from shared.diagnosis import BUCKET_AUTH
from shared.errors import CommandFailed
from shared.filesystem import Filesystem
from shared.juicefs import Juicefs
from shared.runner import run

_STORED_KEY = re.compile(r'"AccessKey": "([^"]+)"')


async def ensure_formatted(juicefs: Juicefs, fs: Filesystem, *, timeout: float) -> None:
    """The file system is there and usable; `timeout` in seconds for each of at most three commands.

    Raises:
        CommandFailed, NotReady: the client's own words.
    """
    refusal: CommandFailed | None = None
    try:
        said = await run(juicefs.format(fs), timeout=timeout)
    except CommandFailed as error:
        if error.reason != BUCKET_AUTH:
            raise
        refusal, said = error, await _settings(juicefs, fs, timeout=timeout)
    stored = _STORED_KEY.search(said)
    if stored and fs.access_key and stored[1] != fs.access_key.reveal():
        await run(juicefs.update_keys(fs), timeout=timeout)
    elif refusal:
        raise refusal


async def _settings(juicefs: Juicefs, fs: Filesystem, *, timeout: float) -> str:
    """What the file system holds; nothing while there is none."""
    try:
        return await run(juicefs.show(fs), timeout=timeout)
    except CommandFailed:
        return ""
