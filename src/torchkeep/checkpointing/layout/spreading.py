"""Which rank writes which bytes of files that all of them have the same tensors for."""

from __future__ import annotations

from collections.abc import Sequence

PART_NBYTES = 64 << 10
"""Files are shared out in parts of this size: whole blocks of any disk, whole pages of memory."""

Range = tuple[int, int]
"""Where a run of bytes begins, and where it ends."""


def shared_out(sizes: Sequence[int], rank: int, num_ranks: int) -> list[Range]:
    """Return what one of several ranks writes of each file; all write about as much.

    Args:
        sizes: the bytes of each file.
        rank: which one writes.
        num_ranks: how many share the work.

    >>> [shared_out([200_000, 70_000], rank, 2) for rank in range(2)]
    [[(0, 196608), (0, 0)], [(196608, 200000), (0, 70000)]]
    """
    counts = [-(-nbytes // PART_NBYTES) for nbytes in sizes]
    first, last = (sum(counts) * n // num_ranks for n in (rank, rank + 1))
    ranges, before = [], 0
    for nbytes, count in zip(sizes, counts, strict=True):
        begin, end = (min(max(part - before, 0), count) for part in (first, last))
        runs = min(begin * PART_NBYTES, nbytes), min(end * PART_NBYTES, nbytes)
        ranges.append(runs if runs[0] < runs[1] else (0, 0))
        before += count
    return ranges
