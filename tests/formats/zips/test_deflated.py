"""A storage that lies deflated is unpacked to exactly its bytes, or refused with what is wrong."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import torchkeep
from torchkeep.contents import Deflated, Storage
from torchkeep.errors import DamagedFile
from torchkeep.files import MemoryFile
from torchkeep.formats.zips.deflated import check_ratio, inflate_into

RAW = bytes(range(200)) * 50
PACKED = zlib.compress(RAW, wbits=-15)
PLACE = Deflated(3, len(PACKED), skipped=10)
STORAGE = Storage("w", len(RAW) - 10, None, crc32=zlib.crc32(RAW), deflated=PLACE)


def unpacked(storage: Storage, packed: bytes = PACKED) -> bytes:
    target = bytearray(storage.nbytes)
    inflate_into(memoryview(target), MemoryFile(b"..." + packed, Path("a.zip")), storage)
    return bytes(target)


def test_the_bytes_behind_those_skipped_are_the_storages() -> None:
    assert unpacked(STORAGE) == RAW[10:]
    assert unpacked(replace(STORAGE, crc32=None)) == RAW[10:]


@pytest.mark.parametrize(
    ("changes", "packed", "problem"),
    [
        ({"crc32": 5}, PACKED, "does not match its checksum"),
        ({"nbytes": len(RAW)}, PACKED, "ends after 9,990 of 10,000 bytes"),
        ({"nbytes": 100}, PACKED, "unpacks to more than its size"),
        ({}, b"\xff" * len(PACKED), "can't be unpacked"),
        ({"deflated": replace(PLACE, nbytes=50)}, PACKED, "ends after"),
    ],
)
def test_what_does_not_unpack_to_it_is_refused(
    changes: dict[str, object], packed: bytes, problem: str
) -> None:
    with pytest.raises(DamagedFile, match=rf"storage 'w' .*{problem}.*Copy or download"):
        unpacked(replace(STORAGE, **changes), packed)


def test_a_size_that_is_only_claimed_is_refused_before_anything_is_allocated() -> None:
    check_ratio(STORAGE, "tensor 'w'")
    with pytest.raises(DamagedFile, match=r"tensor 'w' has 1,099,511,627,776 bytes, more than"):
        check_ratio(replace(STORAGE, nbytes=1 << 40), "tensor 'w'")


def test_compressed_arrays_are_loaded_and_compared_with_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"w": np.arange(2000.0).reshape(20, 100), "f": np.ones((3, 4), order="F")}
    np.savez_compressed(path, **arrays)
    with torchkeep.open(path) as file:
        for name, array in arrays.items():
            assert torch.equal(file[name], torch.from_numpy(array))
        place = file.entry("w").storage.deflated
    assert place is not None
    data = bytearray(path.read_bytes())
    data[place.offset + place.nbytes // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="storage 'w'"):
        torchkeep.load(path)
