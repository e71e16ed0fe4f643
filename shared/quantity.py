"""Amounts as Kubernetes writes them: `10Gi`, `500M`, `1e9`, `100m`."""

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

from shared.domain import GIB
from shared.errors import InvalidRequest

_QUANTITY = re.compile(
    r"([+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,2})?", re.ASCII
)
_BINARY: Final = {f"{letter}i": Decimal(1 << (10 * power)) for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL: Final = {letter: Decimal(10) ** (3 * power) for power, letter in enumerate("num kMGTPE", start=-3)}


def parse(text: str, *, field: str) -> Decimal:
    """The amount itself.

    Raises:
        InvalidRequest: names the field.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{field} is no quantity such as 10Gi")
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    if suffix in _DECIMAL:
        return number * _DECIMAL[suffix]
    return number * Decimal(10) ** int(suffix[1:] or 0)


def whole(text: str, *, field: str) -> int:
    """The amount as a whole number, of bytes for instance, rounded up.

    Raises:
        InvalidRequest: names the field.
    """
    return int(parse(text, field=field).to_integral_value(rounding=ROUND_CEILING))


def of_bytes(count: int) -> str:
    """A size as a quantity, in GiB where it is whole."""
    return f"{count // GIB}Gi" if count % GIB == 0 else str(count)
