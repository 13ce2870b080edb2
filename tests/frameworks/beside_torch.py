"""What torch.load says of a file: whether weights_only takes it, and which tensors are in it.

The files are those that this folder's scripts have written, so that they may be loaded in full.
"""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # allows the names of jagged tensors, in the releases that do
from torch import nn

from releases import INSTALLED
from torchkeep.contents import TensorEntry
from torchkeep.identify import Inspection
from torchkeep.identify.safety.lists import ALLOWED_IN_SOME
from torchkeep.identify.tree import repr_key

FORMATS = frozenset({"torch-zip", "torch-legacy"})
_REFUSALS = (RuntimeError, pickle.UnpicklingError, ValueError, TypeError, AssertionError)


def differences(path: Path, found: Inspection) -> Iterator[str]:
    """Yield where an inspection differs from what torch makes of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _forget_other_names()
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except _REFUSALS:
            value = None
        known = found.safety.weights_only_by_release
        release = ".".join(map(str, INSTALLED))
        takes = known.get(release, found.safety.weights_only)
        if takes != (value is not None):
            yield f"weights_only {value is not None}, is {takes}"
        elif value is not None:
            yield from _of_tables(list(live_tensors(value)), found)
        elif found.modules:
            yield from _of_modules(path, found)


def _forget_other_names() -> None:
    """Disallow what frameworks and parts of PyTorch have allowed when they were imported."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    names = {item: f"{item.__module__}.{item.__qualname__}" for item in allowed if callable(item)}
    known = [item for item, name in names.items() if name in ALLOWED_IN_SOME]
    torch.serialization.add_safe_globals(known)


def _of_tables(live: list[tuple[str, torch.Tensor]], found: Inspection) -> Iterator[str]:
    theirs = Counter((name, facts_of(tensor)) for name, tensor in live)
    mine = Counter((item.path, facts_of(item.entry)) for item in found.tensors())
    if theirs != mine:
        yield f"tensors {sorted(theirs - mine)[:3]}, is {sorted(mine - theirs)[:3]}"


def _of_modules(path: Path, found: Inspection) -> Iterator[str]:
    """Yield where the pickled modules' state dicts differ, if their classes can be imported."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # whatever a class that is gone, or of another release, raises
        return
    for name, node in found.modules:
        module = _at(value, name)
        if isinstance(module, nn.Module) and not _has_hooks(module):
            live, mine = module.state_dict(), node.state_dict()
            if {k: facts_of(v) for k, v in live.items() if isinstance(v, torch.Tensor)} != {
                k: facts_of(v) for k, v in mine.items()
            }:
                yield f"state dict of {name!r} as torch's"


def _at(value: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module in it changes what its state dict holds."""
    return any(
        type(part).state_dict is not nn.Module.state_dict
        or part._state_dict_hooks
        or part._state_dict_pre_hooks  # what no public name tells
        or type(part)._save_to_state_dict is not nn.Module._save_to_state_dict
        for part in module.modules()
    )


def live_tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in a tree of plain values by the paths that torchkeep gives them."""
    if isinstance(value, torch.TypedStorage | torch.UntypedStorage):
        dtype = value.dtype if isinstance(value, torch.TypedStorage) else torch.uint8
        value = torch.empty(0, dtype=dtype).set_(value)
    if isinstance(value, torch.Tensor):
        yield path, value
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple | set):
        items = enumerate(value)
    for key, item in items:
        name = repr_key(key)
        yield from live_tensors(item, f"{path}.{name}" if path else name)


def facts_of(tensor: torch.Tensor | TensorEntry) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return what the two are compared by: dtype, shape, and strides where there are any.

    Of nested tensors it is the dtype: the shapes of their parts have tests of their own.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if isinstance(tensor, TensorEntry):
        is_nested = tensor.layout in ("nested", "jagged")
        return dtype, () if is_nested else tensor.shape, tensor.stride
    if tensor.is_nested:
        return dtype, (), ()
    return dtype, tuple(tensor.shape), tensor.stride() if tensor.layout is torch.strided else ()
