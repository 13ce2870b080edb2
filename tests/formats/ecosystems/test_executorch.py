"""What an ExecuTorch program says about itself."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from formats.building_foreign import executorch, extended_header
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pte")), DEFAULT_LIMITS)


def test_methods_operators_and_backends_are_named() -> None:
    contents = look(executorch(header=extended_header(96, 112, 16), version=2))
    assert contents.container == "executorch"
    assert contents.kind == (
        "ExecuTorch program of version 2: forward, 2 operators, backend XnnpackBackend"
    )
    assert contents.metadata == {
        "program_nbytes": "96",
        "segments_start": "112",
        "version": "2",
        "methods": "forward",
        "operators": "aten::add.out, aten::mm",
        "backends": "XnnpackBackend",
    }


def test_a_program_without_a_header_is_read() -> None:
    assert look(executorch()).metadata["methods"] == "forward"


def test_a_file_of_data_is_told() -> None:
    assert look(bytes(4) + b"FT01" + bytes(50)).kind == "ExecuTorch data of a program"


def test_segments_that_are_cut_off_are_noticed() -> None:
    whole = len(executorch(header=extended_header(0, 0, 0)))
    assert not isinstance(
        look(executorch(header=extended_header(96, whole - 16, 16))).problem, DamagedFile
    )
    contents = look(executorch(header=extended_header(96, 4096, 1000)))
    assert isinstance(contents.problem, DamagedFile)
    assert "the file is truncated: it should have 5,096 bytes" in str(contents.problem)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 31) + b"ET12" + bytes(50),
        struct.pack("<I", 8) + b"ET12" + struct.pack("<i", 100) + bytes(50),
        struct.pack("<I", 8) + b"ET12" + struct.pack("<i", -(1 << 30)) + bytes(50),
    ],
)
def test_places_outside_of_the_file_are_refused(data: bytes) -> None:
    assert isinstance(look(data).problem, DamagedFile)
