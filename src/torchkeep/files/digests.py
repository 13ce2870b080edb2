"""Checksums, at the speed of memory."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator

import xxhash

from torchkeep.files.buffers import Buffer


def digest(data: Buffer) -> str:
    """Return the digest that torchkeep stores everywhere: XXH3, 128 bits, 32 hex digits.

    It finds damage; it is no protection against somebody who wants to deceive.
    Source: the xxHash specification, https://xxhash.com.
    """
    return xxhash.xxh3_128_hexdigest(data)


def new_digest() -> xxhash.xxh3_128:
    """Return the same digest as an object with `update` and `hexdigest`, for data in pieces."""
    return xxhash.xxh3_128()


def digest_of_pieces(pieces: Iterable[Buffer]) -> str:
    """Return the digest of data that comes in pieces."""
    state = new_digest()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


def digests_of_runs(pieces: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[str]:
    """Yield the digests of runs of bytes that follow each other in data that comes in pieces."""
    coming = iter(pieces)
    piece = memoryview(b"")
    for length in lengths:
        state, missing = new_digest(), length
        while missing:
            piece = piece or next(coming)
            state.update(piece[:missing])
            missing, piece = max(missing - len(piece), 0), piece[missing:]
        yield state.hexdigest()


def crc32_of(data: Buffer, value: int = 0) -> int:
    """Return the checksum that zip archives store; `value` is that of the data before.

    zlib-ng computes it where it is installed (`pip install torchkeep[fast]`), four times as fast
    as the zlib that most Pythons come with.
    """
    return _fastest_crc32()(data, value)


@functools.cache
def _fastest_crc32() -> Callable[[Buffer, int], int]:
    try:
        module = importlib.import_module("zlib_ng.zlib_ng")
    except ImportError:
        module = importlib.import_module("zlib")
    function: Callable[[Buffer, int], int] = module.crc32
    return function
