"""A live model as a set of places to fill: their descriptions, and how each is written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.modules.module import _IncompatibleKeys

from torchkeep.errors import LoadMismatch, WrongArgument
from torchkeep.matching.slots import ANY_DTYPE, Slot
from torchkeep.saving.modules import without, wrapped_paths
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
    def of(
        cls,
        model: torch.nn.Module,
        *,
        assign: bool = False,
        dtype: torch.dtype | Literal["file"] | None = None,
    ) -> Target:
        """Return a model's places.

        Args:
            model: the model, wrapped or not.
            assign: whether the tensors will be replaced rather than written to.
            dtype: what the floating-point ones will be then, if not what they are; `file` for what
                the file has.

        Raises:
            LoadMismatch: a tensor of it can't be written to; it is named.
            WrongArgument: it is no model.
        """
        if not isinstance(model, torch.nn.Module):
            raise WrongArgument(
                f"the model is of type {type(model).__qualname__}, and should be a torch.nn.Module",
                advice="Give the model itself first, and then the file.",
            )
        wrapped = wrapped_paths(model)
        parameters = {id(parameter) for parameter in model.parameters()}
        slots: dict[str, Slot] = {}
        tensors: dict[str, torch.Tensor] = {}
        first: dict[object, str] = {}
        for key, value in live_state(model).items():
            name = without(key, wrapped) if wrapped else key
            if not _is_tensor(key, value):
                slots[key] = Slot("any value", (), name=name, is_extra=True)
                continue
            tensors[key] = value
            _check_writable(key, value, assign=assign)
            tied_to = first.setdefault(identity(value), key)
            slots[key] = Slot(
                dtype=_wanted_dtype(value, dtype),
                shape=tuple(value.shape),
                tied_to=None if tied_to == key else tied_to,
                name=name,
                is_buffer=id(value) not in parameters,
            )
        return cls(model, tensors, slots)

    def first_of(self, key: str) -> str:
        """Return the first key of the tensor that a key stands for."""
        return self.slots[key].tied_to or key

    def replace(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put new tensors into the model, given by the first key of what they replace.

        Tied parameters stay tied; parameters stay parameters and keep their `requires_grad`.
        """
        new: dict[int, torch.Tensor] = {}
        for key, module, name in self._owners():
            value = values.get(self.first_of(key))
            if value is None:
                continue
            old = self.tensors[key]
            if id(old) not in new:
                is_parameter = isinstance(old, torch.nn.Parameter)
                new[id(old)] = (
                    torch.nn.Parameter(value, old.requires_grad) if is_parameter else value
                )
            _set(module, name, new[id(old)])

    def check_reset(self, keys: Iterable[str]) -> list[torch.nn.Module]:
        """Return the modules of some keys.

        Raises:
            WrongArgument: one of them has no `reset_parameters`.
        """
        wanted = set(keys)
        if not wanted:
            return []
        modules = {id(module): (key, module) for key, module, _ in self._owners() if key in wanted}
        for key, module in modules.values():
            if not callable(getattr(module, "reset_parameters", None)):
                raise WrongArgument(
                    f"{key!r} can't be reset: a {type(module).__name__} has no reset_parameters()",
                    advice="Use 'skip', and give it values yourself.",
                )
        return [module for _, module in modules.values()]

    def reset(self, keys: Iterable[str]) -> Target:
        """Have the modules of some keys make fresh values; return the places anew.

        Arguments and errors are those of `check_reset`.
        """
        modules: list[Any] = self.check_reset(keys)
        for module in modules:
            if any(value.is_meta for value in module.parameters(recurse=False)):
                module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
        return Target(self.model, live_tensors(self.model), self.slots) if modules else self

    def _owners(self) -> Iterator[tuple[str, torch.nn.Module, str]]:
        """Yield each tensor's key, and the module and the attribute that hold it."""
        for path, module in self.model.named_modules(remove_duplicate=False):
            for name in (*module._parameters, *module._buffers):
                key = f"{path}.{name}" if path else name
                if key in self.tensors:
                    yield key, module, name

    def set_extra_state(self, key: str, value: object) -> None:
        """Give a module back what its `get_extra_state` returned."""
        self.model.get_submodule(key.rpartition(".")[0]).set_extra_state(value)

    def run_hooks(self) -> None:
        """Call what modules registered to be called after a state dict was loaded into them."""
        for module in self.model.modules():
            for hook in module._load_state_dict_post_hooks.values():
                hook(module, _IncompatibleKeys([], []))


def _set(module: torch.nn.Module, name: str, tensor: Any) -> None:
    if type(module).__setattr__ is torch.nn.Module.__setattr__:
        table: dict[str, Any] = (
            module._parameters if name in module._parameters else module._buffers
        )
        table[name] = tensor
    else:  # an LSTM keeps its weights in a list as well
        setattr(module, name, tensor)


def live_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters and persistent buffers by key, themselves and not detached."""
    return {key: value for key, value in live_state(model).items() if _is_tensor(key, value)}


def live_state(model: torch.nn.Module) -> dict[str, Any]:
    """Return a model's state dict with its live tensors.

    A model whose own `state_dict()` leaves tensors out, or gives copies of them, has them here all
    the same: what was loaded and what was not is told of the model, not of what it says.
    """
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    there = {id(value) for value in state.values()}
    for path, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in passing and id(tensor) not in there:
                state[f"{path}.{name}" if path else name] = tensor
    return state


def _is_tensor(key: str, value: object) -> bool:
    return isinstance(value, torch.Tensor) and key.rpartition(".")[2] != EXTRA_STATE


def _wanted_dtype(tensor: torch.Tensor, dtype: torch.dtype | Literal["file"] | None) -> str:
    if dtype is None or not tensor.is_floating_point():
        return dtype_name(tensor.dtype)
    return ANY_DTYPE if dtype == "file" else dtype_name(dtype)


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
