"""Which rank writes which bytes of a file that all of them have the same tensors for."""

from __future__ import annotations

from collections.abc import Sequence

PART_NBYTES = 64 << 10
"""A file is shared out in pieces of this size: whole blocks of any disk, whole pages of memory."""

Range = tuple[int, int]
"""Where a run of bytes begins, and where it ends."""


def shared_out(
    files: Sequence[tuple[int, Sequence[Range]]], num_ranks: int
) -> list[list[list[Range]]]:
    """Return what each rank writes: for each rank, and each file, runs of bytes.

    All ranks get about as many bytes; what only the first one has counts among its own.

    Args:
        files: the size of each file in bytes, and which bytes of it only the first rank has.
        num_ranks: how many share the work.

    >>> shared_out([(200_000, [(0, 4096)])], 2)
    [[[(0, 131072)]], [[(131072, 200000)]]]
    """
    parts = [
        (number, begin, min(begin + PART_NBYTES, nbytes))
        for number, (nbytes, _) in enumerate(files)
        for begin in range(0, nbytes, PART_NBYTES)
    ]
    firsts = {
        (number, index * PART_NBYTES)
        for number, (_, runs) in enumerate(files)
        for begin, end in runs
        for index in range(begin // PART_NBYTES, -(-end // PART_NBYTES))
    }
    of_first = sum(end - begin for at, begin, end in parts if (at, begin) in firsts)
    total = sum(end - begin for _, begin, end in parts)
    left: float = max(total // num_ranks - of_first, 0)
    share = (total - of_first - left) / max(num_ranks - 1, 1)
    written: list[list[list[Range]]] = [[[] for _ in files] for _ in range(num_ranks)]
    rank = 0
    for number, begin, end in parts:
        if (number, begin) in firsts:
            _add(written[0][number], (begin, end))
            continue
        if left <= 0 and rank < num_ranks - 1:
            rank, left = rank + 1, left + share
        _add(written[rank][number], (begin, end))
        left -= end - begin
    return written


def _add(runs: list[Range], run: Range) -> None:
    """Add a run of bytes behind others; what follows the last one without a gap becomes one."""
    if runs and runs[-1][1] == run[0]:
        runs[-1] = runs[-1][0], run[1]
    else:
        runs.append(run)
