"""Inert values to a live model: as unpickling makes it, from objects that were looked at before.

A module is made without its constructor and gets its attributes by its class's `__setstate__`,
which knows what older PyTorch did not save. What a module's hooks and parametrizations compute is
computed again.

Sources: torch/nn/modules/module.py (`__setstate__`), torch/nn/utils/parametrize.py.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torchkeep.contents import Array, DictObject, Global, Object, TensorEntry, Value, child_path
from torchkeep.errors import FileProblem, UnsupportedContent
from torchkeep.identify.modules import is_module, module_class, module_state
from torchkeep.identify.whole_models import unwrapped
from torchkeep.loading.whole.parts import FORGOTTEN
from torchkeep.tensors import TensorReader

MAPPINGS: dict[str, type[dict[Any, Any]]] = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "collections.defaultdict": defaultdict,
}
"""The mappings with a class of their own that readers give as such."""
_IMMUTABLE = (tuple, str, bytes, int, float)


class Builder:
    """Makes the parts of one model, each once.

    Args:
        objects: what the model's names stand for.
        reader: makes its tensors.

    Attributes:
        made: what was made of each inert value, by its id.
    """

    def __init__(self, objects: Mapping[Global, Any], reader: TensorReader) -> None:
        self._objects = objects
        self._reader = reader
        self.made: dict[int, Any] = {}

    def build(self, value: Value, place: str = "") -> Any:
        """Return the live value.

        Raises:
            UnsupportedContent: a class can't take what the file has for it.
            FileProblem: a tensor can't be read.
        """
        value = unwrapped(value)
        if not isinstance(value, _MADE):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = self._make(value, place)
        return self.made[id(value)]

    def _make(self, value: Value, place: str) -> Any:
        if isinstance(value, Global):
            return self._objects[value]
        if isinstance(value, TensorEntry):
            return self._reader.materialize(value, place)
        if isinstance(value, Array):
            return self._reader.materialize(value.entry, place).numpy(force=True)
        if isinstance(value, Object):
            return self._object(value, place)
        if isinstance(value, dict):
            return self._mapping(value, place)
        if isinstance(value, list):
            made: list[Any] = []
            self.made[id(value)] = made
            made.extend(self._items(value, place))
            return made
        return type(value)(self._items(value, place))

    def _items(self, items: Iterable[Value], place: str) -> list[Any]:
        return [self.build(item, child_path(place, number)) for number, item in enumerate(items)]

    def _mapping(self, value: dict[Value, Value], place: str) -> dict[Any, Any]:
        kind = MAPPINGS[value.class_path] if isinstance(value, DictObject) else dict
        made: dict[Any, Any] = kind()
        self.made[id(value)] = made
        for key, item in value.items():
            made[self.build(key, place)] = self.build(item, child_path(place, key))
        return made

    def _object(self, value: Object, place: str) -> Any:
        try:
            if is_module(value):
                return self._module(value, place)
            return self._plain(value, place)
        except FileProblem:
            raise
        except RecursionError:
            raise
        except Exception as error:  # a class may fail in any way at a state that is not its own
            name = module_class(value) if is_module(value) else value.callee
            text = f"{place or 'the model'}: {name} can't be made of what the file has for it"
            raise UnsupportedContent(
                f"{text} ({type(error).__name__}: {error})",
                advice="Its class has changed since; give the one that it was saved with.",
            ) from error

    # --- Modules -------------------------------------------------------------------------------

    def _module(self, value: Object, place: str) -> torch.nn.Module:
        cls = self._objects[module_class(value)]
        made: torch.nn.Module = object.__new__(cls)
        self.made[id(value)] = made
        state = copy.deepcopy(vars(torch.nn.Module()))
        for name, item in module_state(value).items():
            if name not in FORGOTTEN:
                is_table = name in ("_parameters", "_buffers", "_modules")
                state[name] = self.build(item, place if is_table else child_path(place, name))
        _add_what_is_newer(cls, state, self._reader.device)
        made.__setstate__(state)  # type: ignore[no-untyped-call]
        _parametrize(made)
        _recompute(made)
        return made

    # --- Other objects -------------------------------------------------------------------------

    def _plain(self, value: Object, place: str) -> Any:
        callee = self._objects[value.callee]
        if callee is functools.partial:
            held, args, kwargs, _ = value.state
            return functools.partial(
                self.build(held, place), *self._items(args, place), **self.build(kwargs, place)
            )
        args = self._items(value.args, place)
        if not isinstance(callee, type) or issubclass(callee, enum.Enum):
            made = callee(*args)
        elif issubclass(callee, _IMMUTABLE):
            made = callee.__new__(callee, *args)  # type: ignore[type-var]
        elif args or callee.__module__ in ("builtins", "collections"):
            made = callee(*args)
        else:
            made = callee.__new__(callee)
        self.made[id(value)] = made
        self._fill(made, value, place)
        return made

    def _fill(self, made: Any, value: Object, place: str) -> None:
        """Give an object what it had besides its arguments."""
        if value.items:
            made.extend(self._items(value.items, place))
        for key, item in value.pairs.items():
            made[self.build(key, place)] = self.build(item, child_path(place, key))
        if value.state is None:
            return
        if hasattr(made, "__setstate__"):
            made.__setstate__(self.build(value.state, place))
            return
        for name, item in value.attributes.items():
            object.__setattr__(made, name, self.build(item, child_path(place, name)))


_MADE = (TensorEntry, Array, Global, Object, dict, list, tuple, set, frozenset)


def _add_what_is_newer(cls: type, state: dict[str, Any], device: torch.device) -> None:
    """Give a module of PyTorch's what releases after the file's have added, at its default.

    A constructor's argument that TorchScript takes for a constant is an attribute by that name.
    The counter of batches came with 0.4.1; `_BatchNorm._load_from_state_dict` starts it at 0, too.
    """
    if not cls.__module__.startswith("torch.nn.modules."):
        return
    constants = getattr(cls, "__constants__", ())
    for name, parameter in inspect.signature(cls).parameters.items():
        is_set = any(name in table for table in (state, state["_parameters"], state["_buffers"]))
        if name in constants and not is_set and parameter.default is not inspect.Parameter.empty:
            state[name] = parameter.default
    counter = "num_batches_tracked"
    if state["_buffers"].get("running_mean") is not None and counter not in state["_buffers"]:
        state["_buffers"][counter] = torch.tensor(0, dtype=torch.long, device=device)


def _parametrize(module: torch.nn.Module) -> None:
    """Make a module compute its parametrized tensors again.

    Its class is made at run time, so no file has it. PyTorch has no public function that does so
    without computing the originals anew.
    """
    table = module._modules.get("parametrizations")
    if not isinstance(table, torch.nn.ModuleDict) or not all(
        isinstance(item, parametrize.ParametrizationList) for item in table.values()
    ):
        return
    parametrize._inject_new_class(module)
    for name in table:
        parametrize._inject_property(module, name)


def _recompute(module: torch.nn.Module) -> None:
    """Compute what hooks of the model's compute before each call, unless the file has it."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            name, compute = hook._tensor_name, hook.apply_mask
        elif isinstance(hook, WeightNorm):
            name, compute = hook.name, hook.compute_weight
        elif isinstance(hook, SpectralNorm):
            name = hook.name
            compute = functools.partial(hook.compute_weight, do_power_iteration=False)
        else:
            continue
        if name not in vars(module):
            setattr(module, name, compute(module))  # type: ignore[no-untyped-call]
