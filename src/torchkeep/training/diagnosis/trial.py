"""Trying something on a copy of a model, so that nothing of the real one changes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from torchkeep.checkpointing.sample_order import generators_of
from torchkeep.checkpointing.state.rng import capture_rng, restore_rng
from torchkeep.errors import WrongArgument
from torchkeep.saving.modules import unwrapped

Copied = TypeVar("Copied")


@contextlib.contextmanager
def trial(objects: Copied, batches: Iterable[Any] = ()) -> Iterator[Copied]:
    """Yield a deep copy of models and optimizers; put every generator back when the block ends.

    What belongs together must be copied together: in a tuple of a model and its optimizer, the
    copied optimizer holds the copied model's parameters. Gradients are not copied. Hooks are, but
    what they write to outside of the model is no copy.

    Args:
        objects: what is copied.
        batches: a loader that is walked over in the block; its own generators are put back, too.

    Raises:
        WrongArgument: it can't be copied.
    """
    rng = capture_rng()
    own = [(item, item.get_state()) for item in generators_of(batches)]
    try:
        yield _copied(objects)
    finally:
        restore_rng(rng)
        for generator, state in own:
            generator.set_state(state)


def _copied(objects: Copied) -> Copied:
    try:
        return copy.deepcopy(objects)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise WrongArgument(
            f"a check works on a deep copy, and copy.deepcopy fails: {error}",
            advice="Pass the model without what can't be copied, or leave this check out.",
        ) from error


def bare(model: nn.Module) -> nn.Module:
    """Return what is in a wrapper, such as `DataParallel` or that of `torch.compile`."""
    return unwrapped(model)


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer is; the CPU if it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def to_model(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
    """Return a batch on the model's device."""
    device = device_of(model)
    return inputs.to(device), labels.to(device)
