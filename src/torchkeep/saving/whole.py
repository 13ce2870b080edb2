"""A live model described as a pickle would have it, with names in place of classes.

The description is made of the inert values that the readers of pickles make, so one code rebuilds
both. Unlike pickle it goes on where something is no data: a lambda stays a name that whoever loads
must give, a lock or an open file is left out, and both are told.

Sources: torch/nn/modules/module.py (`__getstate__`, the names that every module has);
torch/nn/utils/parametrize.py (a parametrized module's class is made at run time).
"""

from __future__ import annotations

import copyreg
import enum
import json
import pickle
import sys
import types
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from torchkeep.contents import (
    Array,
    DictObject,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    child_path,
    contiguous_stride,
)
from torchkeep.errors import SaveRefused
from torchkeep.formats.own.metadata import LEFT_OUT, STRUCTURE
from torchkeep.formats.own.whole import MAX_DATA_NBYTES, Structure, write_structure
from torchkeep.identify.known_parts import is_known
from torchkeep.saving.leaves import check_tensor
from torchkeep.saving.modules import unwrapped, without, wrapped_paths
from torchkeep.saving.sources import source_texts
from torchkeep.tensors import bytes_of, dtype_name, identity, plain_on_cpu

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)
_GETATTR = Global("builtins", "getattr")
_MAPPINGS = (OrderedDict, Counter)
_HELD = frozenset({"training", "_parameters", "_buffers", "_modules"})
"""Attributes of every module that are always described."""
_PASSED = frozenset(
    "_compiled_call_impl _forward_hooks_always_called _forward_hooks_with_kwargs "
    "_forward_pre_hooks_with_kwargs".split()
)
"""Attributes that say how to call hooks that are left out, or what was compiled."""
_RECOMPUTING = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks that belong to the model: they compute a weight before each call."""
_SPECTRAL = (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
"""Hooks that spectral norm needs besides."""


@dataclass(frozen=True, slots=True)
class Described:
    """A live model as data."""

    texts: dict[str, str] = field(default_factory=dict)
    """What is stored in the metadata beside the state dict."""
    needs: tuple[str, ...] = ()
    """Names that a loader must be given: the user's classes and functions."""
    left_out: tuple[str, ...] = ()
    """What is no data, each with its place: hooks, locks, open files."""


def describe_whole(model: object, state: Mapping[str, Any]) -> Described:
    """Return a model as data.

    Args:
        model: the model; wrappers such as DataParallel are left out, as in the state dict.
        state: its state dict, as it will be stored. Tensors that are not in it are described with
            their values.

    Raises:
        SaveRefused: it is no module, or one of TorchScript, refers to a tensor that can't be
            written, is nested too deeply, or its tensors outside of the state dict are too large.
    """
    if not isinstance(model, torch.nn.Module):
        raise SaveRefused(
            f"only a module can be saved whole, and this is a {_class_name(model)}",
            advice="Leave whole=True out.",
        )
    describer = _Describer(state)
    try:
        describer.name_tensors(model)
        root = describer.value(model, "")
    except RecursionError:
        raise SaveRefused("the model is nested too deeply to be described") from None
    named = describer.named
    structure = Structure(root, source_texts(named.values()), _libraries(named))
    needs = [
        str(name)
        for name, value in named.items()
        if not is_known(name, is_module=_is_class_of(value, torch.nn.Module | enum.Enum))
    ]
    texts = {STRUCTURE: write_structure(structure)}
    if describer.left_out:
        texts[LEFT_OUT] = json.dumps(describer.left_out, ensure_ascii=False)
    return Described(texts, tuple(needs), tuple(describer.left_out))


@dataclass(slots=True)
class _Describer:
    state: Mapping[str, Any]
    named: dict[Global, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)
    _made: dict[int, tuple[Any, Value]] = field(default_factory=dict)
    _data_nbytes: int = 0

    def name_tensors(self, model: torch.nn.Module) -> None:
        """Find out which live tensor is stored under which name."""
        wrapped = wrapped_paths(model)
        for path, module in model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                key = without(child_path(path, name), wrapped)
                stored = self.state.get(key)
                if isinstance(stored, torch.Tensor) and _is_stored(tensor, stored):
                    self._names.setdefault(id(tensor), key)

    def value(self, value: Any, path: str) -> Value:
        """Return a value as data; what is met again is the same again."""
        if type(value) in _PLAIN:
            return value
        if id(value) not in self._made:
            try:
                # The original is kept, so that its id can't be given to another value.
                self._made[id(value)] = value, self._convert(value, path)
            except _NoDataError:
                self._made.pop(id(value), None)
                raise
        return self._made[id(value)][1]

    def _convert(self, value: Any, path: str) -> Value:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, torch.nn.Module):
            return self._module(unwrapped(value), path)
        if type(value) in (tuple, set, frozenset):
            return type(value)(self._items(value, path))
        if type(value) is list:
            made: list[Value] = []
            self._made[id(value)] = value, made
            made.extend(self._items(value, path))
            return made
        if type(value) is dict or type(value) in _MAPPINGS:
            return self._mapping(value, path)
        if _is_numpy(value):
            return value.item() if value.ndim == 0 else self._array(value, path)
        return self._named(value, path) or self._object(value, path)

    def _named(self, value: Any, path: str) -> Value:
        """Return what is told by a name: PyTorch's values, functions, classes; None for others."""
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return Global("torch", str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return Object(Global("torch", "device"), (str(value),))
        if isinstance(value, torch.Size):
            return Object(Global("torch", "Size"), (tuple(value),))
        if isinstance(value, _FUNCTIONS):
            return self._global(value)
        if isinstance(value, types.MethodType):
            return Object(_GETATTR, (self.value(value.__self__, path), value.__name__))
        return None

    def _items(self, items: Any, path: str) -> list[Value]:
        return [self.value(item, child_path(path, place)) for place, item in enumerate(items)]

    def _mapping(self, value: dict[Any, Any], path: str) -> dict[Value, Value]:
        kind = type(value)
        made = {} if kind is dict else DictObject(f"{kind.__module__}.{kind.__qualname__}")
        self._made[id(value)] = value, made
        for key, item in value.items():
            made[self.value(key, path)] = self.value(item, child_path(path, key))
        return made

    def _global(self, value: Any) -> Global:
        reduced = value.__reduce_ex__(2) if isinstance(value, types.BuiltinFunctionType) else ""
        if not isinstance(reduced, str):  # torch.relu is a method of a class in C
            owner, name = reduced[1]
            found = Global(owner.__module__, f"{owner.__qualname__}.{name}")
        else:
            name = getattr(value, "__qualname__", value.__name__)
            found = Global(_module_of(value, name), name)
        self.named.setdefault(found, value)
        return found

    # --- Modules -------------------------------------------------------------------------------

    def _module(self, module: torch.nn.Module, path: str) -> Object:
        for kind in (torch.jit.ScriptModule, torch.fx.GraphModule):
            if isinstance(module, kind):
                raise SaveRefused(
                    f"{path or 'the model'} is a {kind.__qualname__}, whose code is made at run "
                    "time",
                    advice="Save the model that it was made from.",
                )
        cls = type(module)
        state = vars(module)
        if parametrize.is_parametrized(module):
            cls = cls.__mro__[1]  # the class that the parametrized one was made from
        else:
            given = module.__getstate__()  # type: ignore[no-untyped-call]
            state = given if isinstance(given, dict) else state
        made = Object(self._global(cls), ())
        self._made[id(module)] = module, made
        made.state = self._attributes(module, state, path)
        return made

    def _attributes(
        self, module: torch.nn.Module, state: Mapping[str, Any], path: str
    ) -> dict[str, Value]:
        unset = vars(torch.nn.Module())
        hooks = {name for name in unset if "hooks" in name}
        derived = _derived(module)
        made: dict[str, Value] = {}
        for name, value in state.items():
            if name in _PASSED or name in derived:
                continue
            if name in hooks:
                self._hooks(made, name, value, path)
            elif name in _HELD or name not in unset or value != unset[name]:
                self._keep(made, name, value, path if name in _HELD else child_path(path, name))
        return made

    def _keep(self, made: dict[str, Value], name: str, value: Any, path: str) -> None:
        """Put an attribute into the others as data, or tell that it is none."""
        try:
            made[name] = self.value(value, path)
        except _NoDataError as reason:
            self.left_out.append(f"{path}: {reason}")

    def _hooks(self, made: dict[str, Value], name: str, hooks: Any, path: str) -> None:
        """Describe the hooks that belong to the model, and tell of the others."""
        if not isinstance(hooks, dict):
            return
        kept = {key: hook for key, hook in hooks.items() if _belongs(hook)}
        if kept:
            made[name] = self.value(OrderedDict(kept), path)
        for key in hooks.keys() - kept.keys():
            shown = getattr(hooks[key], "__qualname__", type(hooks[key]).__qualname__)
            if not _serves_old_files(hooks[key]):
                self.left_out.append(f"{path or 'the model'}: a hook ({shown} in {name})")

    # --- Tensors and objects -------------------------------------------------------------------

    def _tensor(self, tensor: torch.Tensor, path: str) -> TensorEntry:
        key = self._names.get(id(tensor))
        if key is None:
            check_tensor(tensor, path)
        shape = tuple(tensor.shape)
        return TensorEntry(
            dtype_name(tensor.dtype),
            shape,
            contiguous_stride(shape),
            self._data(tensor, path) if key is None else Storage(key, 0, None),
            requires_grad=tensor.requires_grad,
            is_parameter=isinstance(tensor, torch.nn.Parameter),
        )

    def _data(self, tensor: torch.Tensor, path: str) -> Storage:
        """Return the bytes of a tensor that the state dict does not have."""
        self._data_nbytes += tensor.numel() * tensor.element_size()
        if self._data_nbytes > MAX_DATA_NBYTES:
            raise SaveRefused(
                "the tensors of the model that are not in its state dict take more than "
                f"{MAX_DATA_NBYTES:,} bytes ({path!r} is one)",
                advice="Register them as persistent buffers.",
            )
        data = bytes(bytes_of(plain_on_cpu(tensor)))
        return Storage("", len(data), None, data=data)

    def _array(self, value: Any, path: str) -> Array:
        """Return an array of NumPy's by its elements."""
        try:
            tensor = torch.from_numpy(value.copy(order="C"))
        except TypeError:
            raise _NoDataError(f"an array of {value.dtype} is no data") from None
        return Array(dtype_name(tensor.dtype), tuple(tensor.shape), False, self._data(tensor, path))

    def _object(self, value: Any, path: str) -> Value:
        """Return any other value as what pickle would have Python call."""
        try:
            reduced = value.__reduce_ex__(2)
        except (TypeError, pickle.PicklingError, NotImplementedError) as error:
            raise _NoDataError(f"a {_class_name(value)} is no data ({error})") from None
        if isinstance(reduced, str):  # the name of something that exists once, such as Ellipsis
            return Global(type(value).__module__, reduced)
        callee, args, *more = reduced
        state, items, pairs = (*more, None, None, None)[:3]
        if callee is copyreg.__newobj__:  # type: ignore[attr-defined]  # as pickle itself does it
            callee, *args = args
        made = Object(self.value(callee, path), ())
        self._made[id(value)] = value, made
        made.args = tuple(self._items(args, path))
        made.items.extend(self._items(items or (), path))
        for key, item in pairs or ():
            made.pairs[self.value(key, path)] = self.value(item, path)
        made.state = self._state(state, path)
        return made

    def _state(self, state: Any, path: str) -> Value:
        if not isinstance(state, dict):
            return self.value(state, path)
        made: dict[str, Value] = {}
        for name, item in state.items():
            self._keep(made, name, item, child_path(path, name))
        return made


class _NoDataError(Exception):
    """A value can't be described; the text says why."""


def _serves_old_files(hook: object) -> bool:
    """Whether a hook is PyTorch's own, for state dicts of older names, and changes no output."""
    inner = hook.hook if isinstance(hook, _WrappedHook) else None
    return getattr(inner, "__module__", "").partition(".")[0] == "torch"


def _module_of(value: Any, name: str) -> str:
    """Return the module where a class or a function is found, as pickle does."""
    found: str = pickle.whichmodule(value, name)  # type: ignore[attr-defined]  # not in the stubs
    return found


def _is_stored(tensor: torch.Tensor | None, stored: torch.Tensor) -> bool:
    """Whether a live tensor is what the state dict has under its name."""
    if tensor is None or torch.nn.parameter.is_lazy(tensor):
        return False
    if tensor.numel() == 0 or tensor.device.type == "meta" or tensor.layout != torch.strided:
        return (tensor.shape, tensor.dtype) == (stored.shape, stored.dtype)
    return identity(tensor) == identity(stored)


def _derived(module: torch.nn.Module) -> set[str]:
    """Return the attributes that the module's hooks compute anew before each call."""
    return {
        hook.name if isinstance(hook, WeightNorm | SpectralNorm) else hook._tensor_name
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, _RECOMPUTING)
    }


def _belongs(hook: object) -> bool:
    """Whether a hook is part of what the model computes, and of PyTorch's own."""
    inner = hook.hook if isinstance(hook, _WrappedHook) else hook
    return isinstance(inner, (*_RECOMPUTING, *_SPECTRAL))


def _libraries(named: Iterable[Global]) -> dict[str, str]:
    """Return the versions of the packages that the names are from."""
    tops = dict.fromkeys(name.module.partition(".")[0] for name in named)
    versions = {top: getattr(sys.modules.get(top), "__version__", None) for top in tops}
    return {top: str(version) for top, version in versions.items() if version is not None}


def _is_class_of(value: object, kind: Any) -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def _is_numpy(value: object) -> bool:
    """Whether a value is an array or a number of NumPy's, which need not be installed."""
    kind = type(value)
    return kind.__module__ == "numpy" and hasattr(kind, "ndim")


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
