"""How 7z unpacks: chains of coders, each of which takes what the one before it gives.

Limits: Copy, LZMA, LZMA2, Deflate and BZip2, and after LZMA and LZMA2 the filters that the standard
library has: Delta, and those for machine code (BCJ) of x86, ARM, ARM Thumb, PowerPC, IA-64, SPARC.

Source: `DOC/Methods.txt` of the LZMA SDK; the documentation of Python's lzma.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Any

from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Stream
from torchkeep.formats.archives.unpacking import (
    Budget,
    Decompressor,
    PartStream,
    Unpacked,
    bunzip,
    inflate,
)


@dataclass(frozen=True, slots=True)
class Coder:
    """One step of unpacking."""

    method: bytes
    properties: bytes
    nbytes: int
    """The bytes that come out of it."""


COPY, _DEFLATE, _BZIP2, LZMA, _LZMA2 = b"\0", b"\4\1\10", b"\4\2\2", b"\3\1\1", b"\x21"
_DELTA, _AES = b"\3", b"\6\xf1\7\1"
_FILTERS = {
    b"\4": lzma.FILTER_X86,
    b"\3\3\1\3": lzma.FILTER_X86,
    b"\5": lzma.FILTER_POWERPC,
    b"\3\3\2\5": lzma.FILTER_POWERPC,
    b"\6": lzma.FILTER_IA64,
    b"\3\3\4\1": lzma.FILTER_IA64,
    b"\7": lzma.FILTER_ARM,
    b"\3\3\5\1": lzma.FILTER_ARM,
    b"\x08": lzma.FILTER_ARMTHUMB,
    b"\3\3\7\1": lzma.FILTER_ARMTHUMB,
    b"\x09": lzma.FILTER_SPARC,
    b"\3\3\x08\5": lzma.FILTER_SPARC,
}
"""The filters for machine code, by their short and their long numbers."""
_OTHERS = {
    b"\3\4\1": "PPMd",
    b"\4\1\x09": "Deflate64",
    b"\3\3\1\x1b": "BCJ2",
    b"\4\xf7\x11\1": "Zstandard",
    b"\4\xf7\x11\2": "Brotli",
    b"\4\xf7\x11\4": "LZ4",
}
_MOST_FILTERS = 4
_SMALLEST_DICTIONARY = 1 << 12


def open_chain(packed: PartStream, coders: tuple[Coder, ...], budget: Budget) -> Stream:
    """Return the stream that the coders make of the packed bytes, the first of them first.

    Raises:
        UnsupportedContent: one of them is not known here.
        DamagedFile: their settings make no sense.
    """
    stream: Stream = packed
    rest = list(coders)
    while rest:
        coder = rest.pop(0)
        if coder.method in (LZMA, _LZMA2):
            filters = []
            while rest and (rest[0].method == _DELTA or rest[0].method in _FILTERS):
                filters.append(_filter(rest.pop(0)))
            if coder.method == LZMA and stream is packed and any(map(_keeps_back, filters)):
                stream = _WithTail(packed, coder, filters, budget)
            else:
                stream = _open_lzma(stream, coder, filters, budget)
        elif coder.method == _DEFLATE:
            stream = Unpacked(stream, inflate, budget)
        elif coder.method == _BZIP2:
            stream = Unpacked(stream, bunzip, budget, again=b"BZh")
        elif coder.method == _AES:
            raise UnsupportedContent("it is encrypted")
        elif coder.method != COPY:
            name = _OTHERS.get(coder.method, f"method {coder.method.hex()}")
            raise UnsupportedContent(f"it is packed with {name}")
    return stream


def _open_lzma(
    packed: Stream, coder: Coder, filters: list[dict[str, Any]], budget: Budget
) -> Unpacked:
    if len(filters) >= _MOST_FILTERS:
        raise UnsupportedContent(f"it is packed with {len(filters)} filters one upon another")
    last = _lzma2(coder) if coder.method == _LZMA2 else _lzma1(coder)
    chain = [*reversed(filters), last]

    def start() -> Decompressor:
        try:
            return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
        except (lzma.LZMAError, ValueError, OverflowError) as error:
            raise DamagedFile(f"the settings of LZMA make no sense ({error})") from None

    return Unpacked(packed, start, budget)


class _WithTail:
    """What comes out of LZMA and a filter for machine code.

    Such a filter leaves the last few bytes as they are, and so does not know what they are before
    it has seen the end. 7-Zip writes LZMA without an end mark, and liblzma then keeps them back
    for ever: they are taken from a second run without the filter.
    """

    def __init__(
        self, packed: PartStream, coder: Coder, filters: list[dict[str, Any]], budget: Budget
    ) -> None:
        again = packed.copy()
        plain = [item for item in filters if not _keeps_back(item)]
        self._stream = _open_lzma(packed, coder, filters, budget)
        self._plain = _open_lzma(again, coder, plain, budget)
        self._nbytes = coder.nbytes
        self._position = 0

    def read(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes, or fewer where the stream ends."""
        wanted = min(nbytes, self._nbytes - self._position)
        data = self._stream.read(wanted)
        self._position += len(data)
        missing = wanted - len(data)
        if missing and self._nbytes - self._position <= _LONGEST_TAIL:
            self._plain.skip_to(self._position)
            data += self._plain.read(missing)
            self._position += missing
        return data


_LONGEST_TAIL = 16


def _keeps_back(spec: dict[str, Any]) -> bool:
    return spec["id"] in _FILTERS.values()


def _filter(coder: Coder) -> dict[str, Any]:
    if coder.method == _DELTA:
        return {"id": lzma.FILTER_DELTA, "dist": coder.properties[0] + 1 if coder.properties else 1}
    return {"id": _FILTERS[coder.method]}


def _lzma1(coder: Coder) -> dict[str, Any]:
    if len(coder.properties) != 5 or coder.properties[0] >= 9 * 5 * 5:
        raise DamagedFile("the settings of LZMA make no sense")
    first = coder.properties[0]
    size = int.from_bytes(coder.properties[1:], "little")
    return {
        "id": lzma.FILTER_LZMA1,
        "lc": first % 9,
        "lp": first // 9 % 5,
        "pb": first // 45,
        "dict_size": _dictionary(size, coder),
    }


def _lzma2(coder: Coder) -> dict[str, Any]:
    if len(coder.properties) != 1 or coder.properties[0] > 40:
        raise DamagedFile("the settings of LZMA2 make no sense")
    bits = coder.properties[0]
    size = 0xFFFFFFFF if bits == 40 else (2 | bits & 1) << bits // 2 + 11
    return {"id": lzma.FILTER_LZMA2, "dict_size": _dictionary(size, coder)}


def _dictionary(size: int, coder: Coder) -> int:
    """Return how much of what came out must be kept: never more than all of it."""
    return max(_SMALLEST_DICTIONARY, min(size, coder.nbytes, 0xFFFFFFFF))
