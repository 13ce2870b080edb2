"""writing/payload.py: bytes that are read when their turn comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.contents import Storage, TensorEntry
from torchkeep.errors import DamagedFile
from torchkeep.files import CHUNK_NBYTES, InputFile, atomic_file
from torchkeep.writing.payload import Payload, of_bytes, of_file
from torchkeep.writing.safetensors import TensorData, write_safetensors
from torchkeep.writing.stream import Meter, write_payload
from torchkeep.writing.torch_zip import write_torch_zip


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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_writing_from_a_file_takes_memory_for_a_few_chunks(tmp_path: Path) -> None:
    nbytes = 96 << 20
    with (tmp_path / "source").open("wb") as file:
        file.truncate(nbytes)
    storage = Storage("x", nbytes, 0)
    entry = TensorEntry("uint8", (nbytes,), (1,), storage)
    with InputFile(tmp_path / "source") as source:
        payload = of_file(source, 0, nbytes)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = resident_nbytes("VmRSS")
        data = TensorData("uint8", (nbytes,), payload)
        write_safetensors({"x": data}, tmp_path / "a.safetensors", durable=False)
        write_torch_zip({"x": entry}, lambda _: payload, tmp_path / "a.pth", durable=False)
    assert resident_nbytes("VmHWM") - before < 6 * CHUNK_NBYTES


def resident_nbytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
