"""Each byte of a file is written by one rank, and all write about as much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchkeep.checkpointing.layout.spreading import PART_NBYTES, shared_out


@st.composite
def files(draw):
    found = []
    for _ in range(draw(st.integers(1, 4))):
        nbytes = draw(st.integers(1, 40 * PART_NBYTES))
        begins = draw(st.lists(st.integers(0, nbytes - 1), max_size=3))
        found.append((nbytes, [(begin, min(begin + 5000, nbytes)) for begin in begins]))
    return found


@given(files(), st.integers(1, 9))
def test_each_byte_is_written_by_one_rank(wanted, num_ranks):
    written = shared_out(wanted, num_ranks)
    assert len(written) == num_ranks
    for number, (nbytes, firsts) in enumerate(wanted):
        runs = sorted(run for rank in written for run in rank[number])
        assert [begin for begin, _ in runs] == [0, *(end for _, end in runs[:-1])]
        assert runs[-1][1] == nbytes
        for begin, end in (run for rank in written for run in rank[number]):
            assert begin % PART_NBYTES == 0
            assert end % PART_NBYTES == 0 or end == nbytes
        for begin, end in firsts:
            for rank in written[1:]:
                assert not any(a < end and begin < b for a, b in rank[number])


@given(files(), st.integers(2, 9))
def test_all_write_about_as_much(wanted, num_ranks):
    written = shared_out(wanted, num_ranks)
    loads = [sum(end - begin for runs in rank for begin, end in runs) for rank in written]
    total = sum(nbytes for nbytes, _ in wanted)
    # More than its share only the first one may have, of what nobody else has.
    forced = {
        (number, part)
        for number, (_, runs) in enumerate(wanted)
        for begin, end in runs
        for part in range(begin // PART_NBYTES, -(-end // PART_NBYTES))
    }
    most = max(total / num_ranks, len(forced) * PART_NBYTES)
    assert max(loads) <= most + 2 * PART_NBYTES
