"""A model's layers as a table: what is trained, how fast, and what is asleep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from torchkeep.training.surgery.freezing import has_statistics, stays_in_eval
from torchkeep.training.surgery.wrappers import class_of


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A module with tensors of its own."""

    name: str
    """Where it is in the model; empty for the model itself."""
    kind: str
    """Its class."""
    sizes: dict[str, tuple[int, ...]]
    """The shapes of its own parameters."""
    num_parameters: int
    """The elements of its own parameters. A tensor that several modules share counts once, where
    it comes first."""
    trainable: Literal["yes", "no", "partly", "-"]
    """Whether its parameters are trained; `-` if it has none."""
    learning_rates: tuple[float, ...]
    """Those that the optimizer has for its trainable parameters; none if it has none of them. Under
    a schedule, those that it starts with: a group's `initial_lr`."""
    statistics: Literal["follow", "frozen", "-"]
    """Whether its statistics follow the data in training: `frozen` if it is in evaluation mode;
    `-` if it has none."""
    stays_in_eval: bool
    """Whether `model.train()` leaves it in evaluation mode."""


def layer_table(model: nn.Module, optimizer: Optimizer | None = None) -> tuple[LayerRow, ...]:
    """Return a row for each module that has parameters or statistics of its own, in order."""
    groups = optimizer.param_groups if optimizer is not None else ()
    rates = {
        id(item): float(group.get("initial_lr", group["lr"]))
        for group in groups
        for item in group["params"]
    }
    seen: set[int] = set()
    rows = []
    for name, module in model.named_modules():
        own = {key: item for key, item in module._parameters.items() if item is not None}
        if own or has_statistics(module):
            rows.append(_row(name, module, own, rates, seen))
            seen.update(map(id, own.values()))
    return tuple(rows)


def _row(
    name: str,
    module: nn.Module,
    own: dict[str, nn.Parameter],
    rates: dict[int, float],
    seen: set[int],
) -> LayerRow:
    trained = [item for item in own.values() if item.requires_grad]
    found = {rates[id(item)]: None for item in trained if id(item) in rates}
    sizes = {key: tuple(item.shape) for key, item in own.items()}
    num_parameters = sum(item.numel() for item in own.values() if id(item) not in seen)
    return LayerRow(
        name,
        class_of(module).__name__,
        sizes,
        num_parameters,
        _trainable(len(trained), len(own)),
        tuple(found),
        ("follow" if module.training else "frozen") if has_statistics(module) else "-",
        stays_in_eval(module),
    )


def _trainable(num_trained: int, num: int) -> Literal["yes", "no", "partly", "-"]:
    if not num:
        return "-"
    return "no" if not num_trained else ("yes" if num_trained == num else "partly")
