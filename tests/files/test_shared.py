"""What several write into one file stands there as each has written it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.errors import SaveRefused
from torchkeep.files import BLOCK_NBYTES, make_room, pages, part_of_file


@given(
    st.integers(20 * BLOCK_NBYTES, 30 * BLOCK_NBYTES),
    st.lists(st.integers(0, 25), min_size=3, max_size=12),
    st.integers(1, 5),
    st.booleans(),
    st.randoms(use_true_random=True),
)
def test_each_part_is_as_it_was_written(tmp_path_factory, nbytes, cuts, writers, direct, random):
    path = tmp_path_factory.mktemp("shared") / "file"
    whole = memoryview(pages(-(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES))[:nbytes]
    whole[:] = (bytes(range(1, 252)) * (nbytes // 251 + 1))[:nbytes]  # none is zero
    ends = sorted({min(cut * BLOCK_NBYTES, nbytes) for cut in cuts} | {0, nbytes})
    runs = list(pairwise(ends))
    random.shuffle(runs)
    make_room(path, nbytes)
    assert path.stat().st_size == nbytes
    for writer in range(writers):
        with part_of_file(path, durable=False, background=direct) as file:
            for begin, end in sorted(runs[writer::writers]):
                middle = random.randint(begin, end)
                file.write_at(begin, whole[begin:middle])
                file.write_at(middle, whole[middle:end])
    assert path.read_bytes() == bytes(whole)


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(SaveRefused, match="could not be written"):
        make_room(tmp_path / "a", 100)
    assert (tmp_path / "a").read_bytes() == b"mine"
    with (
        pytest.raises(SaveRefused, match="its folder does not exist"),
        part_of_file(tmp_path / "b", durable=False),
    ):
        pass
