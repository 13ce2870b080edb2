"""files.reading: a copy between places that are too much alike goes round, and arrives whole."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from torchkeep.files import InputFile, reading


@pytest.mark.parametrize("ahead", [0, 1, 24, 31, 32, 2048, 4095])
@pytest.mark.parametrize("offset", [0, 40, 5000])
def test_every_byte_arrives_wherever_it_is_read_to(tmp_path: Path, ahead: int, offset: int) -> None:
    data = os.urandom(700_000)
    (tmp_path / "file").write_bytes(data)
    with mmap.mmap(-1, 800_000) as memory, memoryview(memory) as pages:
        start = (offset + ahead) % 4096
        with InputFile(tmp_path / "file") as file, pages[start : start + 600_001] as target:
            file.read_into(offset, target)
            assert target == data[offset : offset + 600_001]


def test_only_what_the_processor_would_slow_down_takes_the_detour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    whole = InputFile._read_by_detour

    def watched(self: InputFile, offset: int, target: memoryview) -> None:
        taken.append(offset)
        whole(self, offset, target)

    monkeypatch.setattr(InputFile, "_read_by_detour", watched)
    (tmp_path / "file").write_bytes(bytes(200_000))
    places = ((40, 64, 99_000), (40, 40, 99_000), (40, 64, 1000))
    with (
        InputFile(tmp_path / "file") as file,
        mmap.mmap(-1, 200_000) as memory,
        memoryview(memory) as pages,
    ):
        for offset, start, nbytes in places:
            with pages[start : start + nbytes] as target:
                file.read_into(offset, target)
    assert taken == [40]
    assert reading._DETOUR_NBYTES % 4096 == 0
