"""A moving average of a network's weights (EMA)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torchkeep.checkpointing.state.sharded import local_of


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network that averages it over the steps, one `update_parameters` each.

    The decay begins low, so that a short training forgets where it began: after `n` steps it is at
    most `(1 + n) / (10 + n)`, as in TensorFlow's moving averages. Counts, such as BatchNorm's of
    its batches, are as they are in the network.

    Args:
        model: the network.
        decay: what stays of the average in a step, from 0 to 1.
    """
    return AveragedModel(model, multi_avg_fn=partial(_average, decay), use_buffers=True)


def _average(
    decay: float, kept: list[torch.Tensor], now: list[torch.Tensor], num_averaged: torch.Tensor
) -> None:
    # What is sharded is sharded alike, so that each rank averages what it has.
    kept, now = ([local_of(item) for item in items] for items in (kept, now))
    if not kept[0].is_floating_point():
        for mine, theirs in zip(kept, now, strict=True):
            mine.copy_(theirs)
        return
    count = int(num_averaged)
    average = get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))  # type: ignore[no-untyped-call]
    average(kept, now, num_averaged)
