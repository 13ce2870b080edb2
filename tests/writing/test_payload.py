"""writing/payload.py: bytes that are read when their turn comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.errors import DamagedFile
from torchkeep.files import CHUNK_NBYTES, InputFile, atomic_file
from torchkeep.writing.payload import Payload, of_bytes, of_file
from torchkeep.writing.stream import Meter, write_payload


def test_a_part_of_a_file_comes_in_chunks(tmp_path: Path) -> None:
    data = bytes(range(251)) * (2 * CHUNK_NBYTES // 251 + 10)
    (tmp_path / "file").write_bytes(data)
    with InputFile(tmp_path / "file") as file:
        payload = of_file(file, 5, len(data) - 9)
        pieces = list(payload.read(1, payload.nbytes))
        assert b"".join(pieces) == data[6:-4]
        assert max(map(len, pieces)) == CHUNK_NBYTES
        part = payload.part(10, 30)
        assert (part.nbytes, part.joined(2, 5)) == (20, data[17:20])


def test_a_file_that_is_too_short_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (
        InputFile(tmp_path / "file") as file,
        pytest.raises(DamagedFile, match="bytes 1 to 5 are needed, and it ends at 3"),
    ):
        of_file(file, 1, 4).joined(0, 4)


def test_bytes_in_memory_are_not_copied() -> None:
    data = bytearray(b"abcdef")
    (piece,) = of_bytes(data).read(1, 4)
    data[1] = ord("x")
    assert bytes(piece) == b"xcd"


def test_a_payload_that_gives_other_bytes_than_it_announced_is_an_error(tmp_path: Path) -> None:
    short = Payload(5, lambda begin, end: (b"abc",))
    with (
        pytest.raises(ValueError, match="3 bytes came, and 5 were announced"),
        atomic_file(tmp_path / "file", durable=False) as file,
    ):
        write_payload(file, 0, short, Meter(None, 5), lambda chunk: None)
    assert not (tmp_path / "file").exists()
    with pytest.raises(ValueError, match="3 bytes came, and 4 were announced"):
        short.joined(1, 5)
