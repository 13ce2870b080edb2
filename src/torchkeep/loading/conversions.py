"""What a model's own loading code would make of a file's keys.

Modules convert old state dicts while they load: torchvision's detectors and vision transformers
rename keys of earlier releases, a frozen BatchNorm drops a counter, users register hooks. That is
code of the model, so it is asked, on stand-ins: each module is a shallow copy with tensors on
`meta`, and so are the file's tensors. Where these end up in the state dict tells what was renamed.
What is computed can't be told so: it stays missing, or is said not to fit. Nor can it be told what
code does that fails without values; what it would load is said not to fit, either.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from torchkeep.contents import TensorEntry, Value
from torchkeep.loading.targets import Target
from torchkeep.matching.names import match_names
from torchkeep.matching.plan import Conversion, names_of
from torchkeep.saving.modules import without, wrapped_paths
from torchkeep.tensors import torch_dtype


def own_conversion(
    target: Target,
    source: Mapping[str, TensorEntry | Value],
    rename: Mapping[str, str],
    versions: Mapping[str, Mapping[str, Any]],
) -> Conversion:
    """Return what the model's modules do to the keys of a state dict before they load it.

    Args:
        target: the model; it is not changed.
        source: the file's state dict.
        rename: the user's renames.
        versions: the modules' versions by path, as a state dict's `_metadata` has them.
    """
    names = match_names(source, names_of(target.slots), rename).names
    stand_ins = {
        key: tensor
        for key, entry in source.items()
        if isinstance(entry, TensorEntry) and (tensor := _empty(entry)) is not None
    }
    state = OrderedDict((names[key], tensor) for key, tensor in stand_ins.items())
    unknown = tuple(
        f"{path}." if path else ""
        for path, module in _converting(target.model)
        if not _convert(_stand_in(module), state, path, dict(versions.get(path, {})))
    )
    now = {id(tensor): name for name, tensor in state.items()}
    ours = {id(tensor) for tensor in stand_ins.values()}
    live = {target.slots[key].name or key: tensor for key, tensor in target.tensors.items()}
    return Conversion(
        renamed={
            key: now[id(tensor)]
            for key, tensor in stand_ins.items()
            if now.get(id(tensor), names[key]) != names[key]
        },
        dropped=frozenset(key for key, tensor in stand_ins.items() if id(tensor) not in now),
        kept=frozenset(
            name
            for name, value in state.items()
            if id(value) not in ours and _is_same(value, live.get(name))
        ),
        computed=frozenset(
            names[key]
            for key, tensor in stand_ins.items()
            if names[key].startswith(unknown) or _is_changed(tensor, state.get(names[key]), ours)
        ),
    )


def computes_values(model: torch.nn.Module) -> bool:
    """Whether a model has loading code that is not PyTorch's own, which may change values."""
    return any(
        not str(code.__module__).startswith("torch.")
        for module in model.modules()
        if _converts(module)
        for code in (
            type(module)._load_from_state_dict,
            *(getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values()),
        )
    )


def _is_changed(stand_in: torch.Tensor, now: object, stand_ins: Collection[int]) -> bool:
    """Whether a tensor of the file was written to, or another was computed under its name."""
    is_other = isinstance(now, torch.Tensor) and id(now) not in stand_ins and now.is_meta
    return is_other or stand_in._version > 0


def _empty(entry: TensorEntry) -> torch.Tensor | None:
    """Return a tensor without values; None if PyTorch has none of such a shape."""
    try:
        return torch.empty(entry.shape, dtype=torch_dtype(entry.dtype), device="meta")
    except RuntimeError:  # its number of elements overflows, which the plan refuses by itself
        return None


def _converting(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules that have loading code of their own, with their paths without wrappers."""
    wrapped = wrapped_paths(model)
    for path, module in model.named_modules(remove_duplicate=False):
        if _converts(module):
            yield without(path, wrapped), module


def _converts(module: torch.nn.Module) -> bool:
    has_own = type(module)._load_from_state_dict is not torch.nn.Module._load_from_state_dict
    return bool(has_own or module._load_state_dict_pre_hooks) and not _is_lazy(module)


def _stand_in(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module with the same attributes, but for its tensors, which are on `meta`."""
    made: torch.nn.Module = type(module).__new__(type(module))
    tensors = {
        kind: {
            name: None if item is None else item.detach().to("meta")
            for name, item in vars(module)[kind].items()
        }
        for kind in ("_parameters", "_buffers")
    }
    made.__dict__ = {**vars(module), **tensors}
    return made


def _convert(
    module: torch.nn.Module, state: dict[str, Any], path: str, metadata: dict[str, Any]
) -> bool:
    """Have a module convert its part of a state dict; return whether its code came to an end.

    A file that has no versions of modules, as safetensors files have none, is taken for one of the
    oldest, as PyTorch takes it. Code that refuses that (torchvision's MNASNet) is asked once more
    for its own version.
    """
    tries = [metadata] if metadata else [{}, {"version": module._version}]
    return any(_comes_to_an_end(module, state, path, versions) for versions in tries)


def _comes_to_an_end(
    module: torch.nn.Module, state: dict[str, Any], path: str, metadata: dict[str, Any]
) -> bool:
    prefix, before = f"{path}." if path else "", dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a stand-in gets no values is meant
        try:
            module._load_from_state_dict(state, prefix, metadata, True, [], [], [])
        except Exception:  # it is the user's, and may need values
            state.clear()
            state.update(before)
            return False
    return True


def _is_lazy(module: torch.nn.Module) -> bool:
    """Whether it has parameters that loading would make."""
    return any(torch.nn.parameter.is_lazy(item) for item in module.parameters(recurse=False))


def _is_same(value: object, live: torch.Tensor | None) -> bool:
    """Whether what a module puts in for a missing key is what the model has there."""
    if not isinstance(value, torch.Tensor) or value.is_meta or live is None or live.is_meta:
        return False
    return value.dtype == live.dtype and torch.equal(value.to(live.device), live)
