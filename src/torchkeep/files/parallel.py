"""Work on the parts of a file by several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

NUM_THREADS = 2
"""Threads for one file. More gain nothing: the file system lets one writer in at a time."""

GROUP_NBYTES = 1 << 20
"""Small tensors are handled together up to this size, so that each costs no call of its own."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(
    work: Callable[[_Item], _Result], items: Iterable[_Item], num_threads: int = NUM_THREADS
) -> list[_Result]:
    """Return `work(item)` for each item, in order, computed by so many threads.

    What a call raises is raised here; calls that have not begun are then dropped. A single item is
    this thread's: to start others takes longer than to write a small file.
    """
    items = list(items)
    if len(items) < 2 or num_threads < 2:
        return [work(item) for item in items]
    # Here, since to inspect a file needs no threads, and starts faster without.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(num_threads, thread_name_prefix="torchkeep") as pool:
        return list(pool.map(work, items))


def grouped_by_size(
    items: Iterable[_Item], nbytes_of: Callable[[_Item], int], limit: int = GROUP_NBYTES
) -> list[list[_Item]]:
    """Split items into neighbours that together have at most `limit` bytes; a large one is alone.

    >>> grouped_by_size([1, 2, 9, 3], lambda nbytes: nbytes, limit=4)
    [[1, 2], [9], [3]]
    """
    groups: list[list[_Item]] = []
    room = 0
    for item in items:
        nbytes = nbytes_of(item)
        if not groups or nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= nbytes
    return groups
