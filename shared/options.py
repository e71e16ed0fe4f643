"""A program's options: from its arguments, or from the environment, and a secret from a file.

Every option `--some-thing` can be given as JUICEFS_CSI_SOME_THING (`--nats` as JUICEFS_CSI_NATS_URL too); an argument
wins. Arguments are visible to everyone on the machine, so a password in one is refused.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from shared.errors import NotReady

PREFIX: Final = "JUICEFS_CSI_"
_PASSWORD_IN_URL: Final = re.compile(r"://[^/\s@]*:[^/\s]+@")
_TRUTH: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def add_nats(parser: argparse.ArgumentParser) -> None:
    """The options that `nats_url` reads."""
    parser.add_argument(
        "--nats", dest="nats_url", metavar="URL", default="nats://127.0.0.1:4222", help="where NATS is (%(default)s)"
    )
    parser.add_argument("--nats-password-file", metavar="FILE", help="the password of the URL's user, or a token")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments and environment together; ends the program (2) with a line that says what is wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    if any(_PASSWORD_IN_URL.search(argument) for argument in given):
        parser.error(f"a password in an argument can be read by everyone: use {PREFIX}NATS_PASSWORD_FILE")
    parser.epilog = f"Every option can be given in the environment too: --some-thing as {PREFIX}SOME_THING."
    return parser.parse_args([*_from_environment(parser), *given])


def nats_url(options: argparse.Namespace) -> str:
    """The URL of NATS with its password: for `shared.connection.Address` only.

    Raises:
        NotReady: the password's file can't be read.
    """
    url: str = options.nats_url
    if not options.nats_password_file:
        return url
    try:
        password = quote(Path(options.nats_password_file).read_text().strip(), safe="")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise NotReady(f"the password of NATS can't be read from {options.nats_password_file}: {reason}") from None
    first, *others = url.split(",")
    scheme, _, rest = first.rpartition("://")
    user, _, host = rest.rpartition("@")
    return ",".join([f"{scheme or 'nats'}://{f'{user}:' if user else ''}{password}@{host}", *others])


def _from_environment(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The environment as arguments, so that argparse checks and converts both alike."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask what it knows
        options = [option for option in action.option_strings if option.startswith("--")]
        names = [PREFIX + name.strip("-").replace("-", "_").upper() for name in (*options, action.dest)]
        name, value = next(((name, os.environ[name]) for name in names if os.environ.get(name)), ("", ""))
        if not options or not value:
            continue
        if action.nargs != 0:
            yield f"{options[0]}={value}"
        elif value.lower() not in _TRUTH:
            parser.error(f"{name} must be true or false")
        elif _TRUTH[value.lower()]:
            yield options[0]
