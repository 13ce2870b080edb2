"""writing/zip_layout.py: sizes past 4 GiB, without writing 4 GiB."""

from __future__ import annotations

import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from torchkeep.writing.zip_layout import ALIGNMENT, central_directory, lay_out, local_header


@pytest.mark.parametrize("large", [(1 << 32) - 2, (1 << 32) - 1, 1 << 32, 5 << 32])
def test_zipfile_reads_records_of_any_size_and_place(tmp_path: Path, large: int) -> None:
    records = lay_out([("first", 3), ("large", large), ("last", 3)])
    crc32s = {"first": 0x352441C2, "large": 0, "last": 0x352441C2}  # of b"abc"
    with (tmp_path / "file").open("wb") as file:  # sparse: the large payload takes no room
        for record in records:
            assert record.offset % ALIGNMENT == 0
            file.seek(record.header_offset)
            header = local_header(record, crc32s[record.name])
            assert record.header_offset + len(header) == record.offset
            file.write(header)
            if record.nbytes == 3:
                file.write(b"abc")
        file.seek(records[-1].end)
        file.write(central_directory(records, crc32s))
    with zipfile.ZipFile(tmp_path / "file") as archive:
        assert [info.file_size for info in archive.infolist()] == [3, large, 3]
        has_zip64 = archive.getinfo("archive/large").extra.startswith(b"\x01\x00")
        assert has_zip64 == (large >= 0xFFFFFFFF)  # which in 32 bits means "see there"
        assert archive.read("archive/first") == archive.read("archive/last") == b"abc"
        with archive.open("archive/large") as member:
            assert member.read(10) == bytes(10)


def test_zipfile_and_torch_read_more_records_than_a_plain_zip_can_count(tmp_path: Path) -> None:
    count = 66_000
    records = lay_out([("version", 2), *((f"data/{n}", 0) for n in range(count))])
    crc32s = dict.fromkeys((record.name for record in records), 0)
    crc32s["version"] = zlib.crc32(b"3\n")
    parts = [local_header(record, crc32s[record.name]) for record in records]
    parts[0] += b"3\n"
    (tmp_path / "file").write_bytes(b"".join(parts) + central_directory(records, crc32s))
    with zipfile.ZipFile(tmp_path / "file") as archive:
        assert len(archive.infolist()) == count + 1
        assert archive.read("archive/version") == b"3\n"
    assert len(torch._C.PyTorchFileReader(str(tmp_path / "file")).get_all_records()) == count + 1


def test_records_follow_one_another_without_overlap() -> None:
    records = lay_out((f"data/{n}", n) for n in range(200))
    for one, two in pairwise(records):
        assert one.end == two.header_offset
