"""Storages that lie deflated in their file, unpacked into memory that is theirs anyway.

PyTorch stores records as they are; a zip tool that makes the file anew deflates them, and so does
NumPy's `savez_compressed`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from torchkeep.contents import Deflated, Storage
from torchkeep.errors import DamagedFile
from torchkeep.files import CHUNK_NBYTES, Readable

_MOST_PACKED = 1032
"""How many bytes one byte of deflate can become at the most (zlib's technical notes)."""


def check_ratio(storage: Storage, called: str) -> None:
    """Raise `DamagedFile` if a storage can't have come out of so few bytes.

    So nothing is allocated for a size that is only claimed.
    """
    place = _place(storage)
    if storage.nbytes + place.skipped > _MOST_PACKED * place.nbytes:
        raise DamagedFile(
            f"{called} has {storage.nbytes:,} bytes, more than {place.nbytes:,} packed ones become",
            advice="Copy or download the file again.",
            path=storage.path,
        )


def inflate_into(target: memoryview, file: Readable, storage: Storage) -> None:
    """Unpack a storage into memory of its size; arguments and errors are those of `inflated`."""
    filled = 0
    for piece in inflated(file, storage):
        target[filled : filled + len(piece)] = piece
        filled += len(piece)


def inflated(file: Readable, storage: Storage) -> Iterator[bytes]:
    """Yield a storage's bytes, unpacked, piece by piece; never more than its size.

    Args:
        file: the file that it lies in.
        storage: one that is deflated.

    Raises:
        DamagedFile: it can't be unpacked, is shorter or longer than it should be, or does not match
            its checksum.
    """
    place, checksum, filled, unpacker = _place(storage), 0, 0, zlib.decompressobj(-zlib.MAX_WBITS)
    skipped = place.skipped
    for start in range(0, place.nbytes, CHUNK_NBYTES):
        packed = file.read_at(place.offset + start, min(CHUNK_NBYTES, place.nbytes - start))
        while packed:
            try:
                piece = unpacker.decompress(packed, CHUNK_NBYTES)
            except zlib.error as error:
                raise _damaged(storage, f"can't be unpacked ({error})") from None
            packed, checksum = unpacker.unconsumed_tail, zlib.crc32(piece, checksum)
            piece, skipped = piece[skipped:], max(0, skipped - len(piece))
            filled += len(piece)
            if filled > storage.nbytes:
                raise _damaged(storage, "unpacks to more than its size")
            yield piece
    if filled < storage.nbytes or not unpacker.eof:
        raise _damaged(storage, f"ends after {filled:,} of {storage.nbytes:,} bytes")
    if storage.crc32 is not None and checksum != storage.crc32:
        raise _damaged(storage, "does not match its checksum")


def _place(storage: Storage) -> Deflated:
    if storage.deflated is None:
        raise ValueError("the storage is not deflated")
    return storage.deflated


def _damaged(storage: Storage, what: str) -> DamagedFile:
    return DamagedFile(
        f"storage {storage.key!r} {what}",
        advice="Copy or download the file again.",
        path=storage.path,
    )
