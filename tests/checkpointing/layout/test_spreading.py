"""Each byte of a file is written by one rank, and all write about as much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchkeep.checkpointing.layout.spreading import PART_NBYTES, shared_out


@given(st.lists(st.integers(1, 40 * PART_NBYTES), min_size=1, max_size=4), st.integers(1, 9))
def test_each_byte_is_written_by_one_rank_and_all_write_about_as_much(sizes, num_ranks):
    written = [shared_out(sizes, rank, num_ranks) for rank in range(num_ranks)]
    for number, nbytes in enumerate(sizes):
        runs = [run for run in (rank[number] for rank in written) if run != (0, 0)]
        assert [begin for begin, _ in runs] == [0, *(end for _, end in runs[:-1])]
        assert runs[-1][1] == nbytes
        for begin, end in runs:
            assert begin % PART_NBYTES == 0
            assert end % PART_NBYTES == 0 or end == nbytes
    loads = [sum(end - begin for begin, end in rank) for rank in written]
    most = sum(sizes) / num_ranks + PART_NBYTES * (1 + len(sizes))
    assert max(loads) <= most
