"""A live model as a set of places to fill: their descriptions, and how each is written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchkeep.errors import LoadMismatch
from torchkeep.matching.slots import Slot
from torchkeep.tensors import dtype_name, identity

EXTRA_STATE = "_extra_state"
"""The last part of the key under which a module keeps what `get_extra_state` returned."""


@dataclass(frozen=True, slots=True)
class Target:
    """A live model, by the keys of its state dict."""

    model: torch.nn.Module
    """The model."""
    tensors: dict[str, torch.Tensor]
    """Its live parameters and persistent buffers."""
    slots: dict[str, Slot]
    """What fits there; extra states included."""

    @classmethod
    def of(cls, model: torch.nn.Module, *, assign: bool) -> Target:
        """Return a model's places.

        Args:
            model: the model, wrapped or not.
            assign: whether the tensors will be replaced rather than written to.

        Raises:
            LoadMismatch: a tensor of it can't be written to; it is named.
        """
        state: Mapping[str, Any] = model.state_dict(keep_vars=True)
        slots: dict[str, Slot] = {}
        tensors: dict[str, torch.Tensor] = {}
        first: dict[object, str] = {}
        for key, value in state.items():
            if key.rpartition(".")[2] == EXTRA_STATE or not isinstance(value, torch.Tensor):
                slots[key] = Slot("any value", (), is_extra=True)
                continue
            _check_writable(key, value, assign=assign)
            tied_to = first.setdefault(identity(value), key)
            shape = tuple(value.shape)
            slots[key] = Slot(dtype_name(value.dtype), shape, None if tied_to == key else tied_to)
            tensors[key] = value
        return cls(model, tensors, slots)

    def first_of(self, key: str) -> str:
        """Return the first key of the tensor that a key stands for."""
        return self.slots[key].tied_to or key

    def replace(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put new tensors into the model, given by the first key of what they replace.

        Tied parameters stay tied; parameters stay parameters and keep their `requires_grad`.
        """
        new: dict[int, torch.Tensor] = {}
        for key, (module, name) in self._owners().items():
            value = values.get(self.first_of(key))
            if value is None:
                continue
            old = self.tensors[key]
            if id(old) not in new:
                is_parameter = isinstance(old, torch.nn.Parameter)
                new[id(old)] = (
                    torch.nn.Parameter(value, old.requires_grad) if is_parameter else value
                )
            setattr(module, name, new[id(old)])

    def _owners(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """Return the module and the attribute that hold each tensor."""
        return {
            key: (module, name)
            for path, module in self.model.named_modules(remove_duplicate=False)
            for name in (*module._parameters, *module._buffers)
            if (key := f"{path}.{name}" if path else name) in self.tensors
        }

    def set_extra_state(self, key: str, value: object) -> None:
        """Give a module back what its `get_extra_state` returned."""
        self.model.get_submodule(key.rpartition(".")[0]).set_extra_state(value)


def _check_writable(key: str, tensor: torch.Tensor, *, assign: bool) -> None:
    problem = advice = ""
    if torch.nn.parameter.is_lazy(tensor):
        problem, advice = "is not initialised yet", "Run one batch through the model first."
    elif type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        problem, advice = (
            f"is a {type(tensor).__qualname__}",
            "Load before you shard or convert it.",
        )
    elif tensor.layout != torch.strided or tensor.is_quantized:
        problem, advice = "is sparse or quantized", "Load before you convert it."
    elif not assign and tensor.device.type == "meta":
        problem, advice = "is on the meta device and has no memory", "Pass assign=True."
    elif not assign and _overlaps_itself(tensor):
        problem, advice = "has elements that share memory (expand)", "Pass assign=True."
    if problem:
        raise LoadMismatch(f"the model's {key!r} {problem}", advice=advice)


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    return any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
