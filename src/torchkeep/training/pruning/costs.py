"""What a network costs: its size, the work of one call, and how long that takes beside another."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchkeep.errors import WrongArgument
from torchkeep.modes import evaluating
from torchkeep.outputs import as_arguments, place_of


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs, as far as it can be counted."""

    num_parameters: int
    """Elements of its parameters; a tied one counts once."""
    nbytes: int
    """Bytes of its state dict."""
    num_macs: int
    """Multiply-accumulates of one call with the given inputs: convolutions, matrix products and
    attention, as `torch.utils.flop_counter` counts them."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long two networks take for the same inputs, run in turns."""

    before_s: float
    """The median of the first one's times, in seconds."""
    after_s: float
    """The median of the second one's."""
    num_runs: int
    """How often each was run."""

    @property
    def ratio(self) -> float:
        """The second one's time as a share of the first one's; below 1 is faster."""
        return self.after_s / self.before_s


def cost_of(model: nn.Module, inputs: Any) -> Cost:
    """Return what one call of a network costs, in evaluation mode.

    Args:
        model: the network.
        inputs: what it is called with: a tensor, a tuple of arguments, or a dict of named ones.
    """
    args, kwargs = as_arguments(inputs)
    counter = FlopCounterMode(display=False)
    with evaluating(model), _without_gradients(model), _no_fast_path(), counter:
        model(*args, **kwargs)
    tensors = {id(item): item for item in model.state_dict(keep_vars=True).values()}
    return Cost(
        sum(parameter.numel() for parameter in model.parameters()),
        sum(item.nbytes for item in tensors.values() if isinstance(item, torch.Tensor)),
        counter.get_total_flops() // 2,
    )


def compare_latency(before: nn.Module, after: nn.Module, inputs: Any, *, runs: int = 9) -> Latency:
    """Return how long two networks take, in evaluation mode and run in turns.

    A machine that gets slower meanwhile slows both; one call of each goes before, untimed.

    Args:
        before: the one network.
        after: the other one.
        inputs: as for `cost_of`; of the batch size that matters.
        runs: how often each is timed, at least once.

    Raises:
        WrongArgument: `runs` is less than 1.
    """
    if runs < 1:
        raise WrongArgument(f"a latency needs at least one run, not {runs}")
    times: tuple[list[float], list[float]] = ([], [])
    with evaluating(before), evaluating(after):
        for number in range(runs + 1):
            for model, found in zip((before, after), times, strict=True):
                seconds = _timed(model, inputs)
                found.extend([seconds] if number else [])
    return Latency(_median(times[0]), _median(times[1]), runs)


def _median(times: Sequence[float]) -> float:
    return max(statistics.median(times), 1e-9)  # a clock may stand still


def _timed(model: nn.Module, inputs: Any) -> float:
    args, kwargs = as_arguments(inputs)
    device, _ = place_of(model)
    begin = time.perf_counter()
    model(*args, **kwargs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Have no parameter require a gradient, until the block ends.

    A view of one that is passed on says so too and has no gradient function, since nothing is
    recorded: the counter's hooks fail at it. CaiT's class token is such a view.
    """
    trainable = [item for item in model.parameters() if item.requires_grad]
    for item in trainable:
        item.requires_grad_(False)
    try:
        yield
    finally:
        for item in trainable:
            item.requires_grad_(True)


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Have attention run as the products that it is made of, which can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
