"""The rest of an epoch, shared out among another number of ranks than it began with.

Each rank had an order of its own, and all had finished as many batches of it. What is left is put
into one row, in the order in which it would have come, and dealt out again. So no sample is lost,
and none is seen twice, but where there are fewer left than ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchkeep.errors import CheckpointProblem

Order = list[Any]
"""Batches of indices, or indices."""

LEAST_SAMPLES = 2
"""So many a rank has in a batch, if that can be: a BatchNorm can't be trained on one."""


def rest_of(orders: Sequence[Order], num_finished: int, num_samples: int | None) -> list[Any]:
    """Return the samples that no rank has finished, in the order in which they would have come.

    Args:
        orders: that of each rank.
        num_finished: how many batches of it each has finished.
        num_samples: how many the data set has.

    >>> rest_of([[[0, 2], [4]], [[1, 3], [0]]], 1, 5)  # DistributedSampler has added 0
    [4]
    """
    if all(order == orders[0] for order in orders):  # each rank walks over everything
        orders = orders[:1]
    length = max(map(len, orders))
    done = _row(orders, 0, num_finished)
    rest = _row(orders, num_finished, length)
    if not _is_padded(orders, num_samples):
        return rest
    seen = set(done)
    kept = []
    for index in rest:
        if index not in seen:
            seen.add(index)
            kept.append(index)
    return kept


def _row(orders: Sequence[Order], begin: int, end: int) -> list[Any]:
    """Return the samples of all ranks from one batch on to another, batch by batch."""
    row: list[Any] = []
    for number in range(begin, end):
        for order in orders:
            if number < len(order):
                row += order[number] if isinstance(order[number], list) else [order[number]]
    return row


def _is_padded(orders: Sequence[Order], num_samples: int | None) -> bool:
    """Whether a sampler has repeated samples in the last step to give each rank as many batches.

    One that draws with replacement repeats them anywhere, and is to be left alone.
    """
    last = max(map(len, orders)) - 1
    until_last, row = _row(orders, 0, last), _row(orders, 0, last + 1)
    try:
        distinct = len(set(row))
    except TypeError:  # indices of a kind that can't be compared
        return False
    return distinct == num_samples and len(set(until_last)) == len(until_last)


def dealt_out(rest: Sequence[Any], rank: int, size: int, batch_size: int) -> list[list[Any]]:
    """Return the batches of one of several ranks; all get as many batches, and no empty one.

    Args:
        rest: what is to be shared out.
        rank: whose part.
        size: how many ranks there are.
        batch_size: samples of a rank in a batch, at the most.

    >>> [dealt_out(range(9), rank, 2, 2) for rank in range(2)]
    [[[0, 1], [4, 5], [7]], [[2, 3], [6], [8]]]
    """
    sizes = _sizes(len(rest), size, batch_size)
    batches, begin = [], 0
    for count in sizes:
        step = list(rest[begin : begin + count])
        begin += count
        # Only where fewer samples than ranks are left at all: a rank without any would keep the
        # others waiting.
        step += [step[number % len(step)] for number in range(size - len(step))]
        first, more = divmod(len(step), size)
        start = rank * first + min(rank, more)
        batches.append(step[start : start + first + (rank < more)])
    return batches


def _sizes(num_samples: int, num_ranks: int, batch_size: int) -> list[int]:
    """Return how many samples each step has over all ranks."""
    full = num_ranks * batch_size
    sizes = [full] * (num_samples // full)
    left = num_samples - len(sizes) * full
    if not left:
        return sizes
    least = num_ranks * (LEAST_SAMPLES if batch_size >= 2 * LEAST_SAMPLES else 1)
    if left < least and sizes and batch_size > 1:
        sizes[-1] -= least - left
        left = least
    return [*sizes, left]


def regrouped(data: Sequence[dict[str, Any]], rank: int, size: int) -> dict[str, Any]:
    """Return where a rank is to go on with the epoch, given where each rank was that saved.

    Args:
        data: what `Passes.state` returned on each of them, with the seed.
        rank: which one goes on.
        size: how many do.

    Raises:
        CheckpointProblem: the order of a loader can't be shared out.
    """
    first = data[0]
    passes = [
        _regrouped([item["passes"][number] for item in data if number < len(item["passes"])])
        for number in range(len(first["passes"]))
    ]
    return {**first, "passes": [{**item, "share": [rank, size]} for item in passes]}


def _regrouped(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of a walk over a loader, with what all ranks had left of it."""
    first = states[0]
    if first["is_over"]:
        return first
    if any(state["kind"] != "indices" for state in states):
        raise CheckpointProblem(
            "the epoch was broken off with a loader that can't tell its order: what is left of it "
            "can't be shared out among another number of ranks",
            advice="Go on with as many ranks, or from a checkpoint of the end of an epoch, or "
            "train with a DataLoader over a map-style data set.",
        )
    finished = {state["batch"] for state in states}
    if len(finished) > 1:
        raise CheckpointProblem(
            f"the ranks had finished {min(finished)} to {max(finished)} batches of the epoch, so "
            "what is left can't be shared out among another number of them",
            advice="Go on with as many ranks, or from a checkpoint of the end of an epoch.",
        )
    # One that was regrouped, and has not begun since, has all of them already.
    return {**first, "orders": first.get("orders") or [state["order"] for state in states]}
