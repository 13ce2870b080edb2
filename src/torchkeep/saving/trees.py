"""A tree as it will be stored: only what plain `torch.load(weights_only=True)` reads back.

The tree that the user gives is copied into one of inert values, so that nothing in it can ask
pickle for more. Lists and dicts that stand in it twice stay one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from torchkeep.contents import DictObject, Global, Object, Value, child_path, repr_key
from torchkeep.errors import SaveRefused
from torchkeep.saving.live import LiveTensors

Tree = Any
"""Dicts, lists, tuples and sets of tensors and plain values."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_TORCH_VALUES: dict[type, Callable[[Any], Value]] = {
    torch.dtype: lambda dtype: Global("torch", str(dtype).removeprefix("torch.")),
    torch.device: lambda device: Object(Global("torch", "device"), _device(device)),
    torch.Size: lambda size: Object(Global("torch", "Size"), (tuple(size),)),
}
_ADVICE = {
    "numpy.ndarray": "Save torch.from_numpy(array).",
    "builtins.frozenset": "Save a set.",
    "builtins.function": "Save its name, and look it up when loading.",
    "collections.defaultdict": "Save dict(value).",
    # In Python 3.13 they have another module's name.
    "pathlib.PosixPath": "Save str(path).",
    "pathlib.WindowsPath": "Save str(path).",
    "pathlib._local.PosixPath": "Save str(path).",
    "pathlib._local.WindowsPath": "Save str(path).",
}


class StoredTree:
    """A checked copy of a tree.

    Args:
        tree: what is to be stored.
        device: what to call the device of all tensors; None for the one that each is on.

    Attributes:
        root: the copy, of inert values (see `contents`).
        live: describes the tensors in it, and has their bytes.

    Raises:
        SaveRefused: a value can't be stored as data; the message has its path and type.
    """

    def __init__(self, tree: Tree, device: str | None = None) -> None:
        self.live = LiveTensors(device)
        self._copies: dict[int, tuple[Tree, Value]] = {}
        self._open: set[int] = set()
        try:
            self.root = self._copy(tree, "")
        except RecursionError:
            raise SaveRefused(
                "the value is nested too deeply to be stored", advice="Flatten it."
            ) from None

    def _copy(self, value: Tree, path: str) -> Value:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, torch.Tensor):
            return self.live.entry(value, path)
        if type(value) in _TORCH_VALUES:
            return _TORCH_VALUES[type(value)](value)
        if _is_numpy_scalar(value):
            return self._copy(value.item(), path)
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if id(value) in self._open:
            raise SaveRefused(
                f"{path!r} contains itself, which can't be stored", advice="Break the cycle."
            )
        self._open.add(id(value))
        copy = self._copy_container(value, path)
        self._open.discard(id(value))
        # The original is kept beside its copy, so that its id can't be given to another value.
        self._copies[id(value)] = (value, copy)
        return copy

    def _copy_container(self, value: Tree, path: str) -> Value:
        kind = type(value)
        if kind in (list, tuple):
            return kind(self._copy_items(value, path))
        if kind is dict:
            return dict(self._copy_pairs(value, path))
        if kind in (OrderedDict, Counter):
            copy = DictObject(f"collections.{kind.__name__}")
            copy.update(self._copy_pairs(value, path))
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:  # a module's state dict keeps its versions there
                copy.attributes["_metadata"] = self._copy(metadata, _join(path, "_metadata"))
            return copy
        if kind is set:
            return {self._copy_key(item, path) for item in value}
        raise _refused(value, path)

    def _copy_items(self, items: Iterable[Tree], path: str) -> list[Tree]:
        return [self._copy(item, _join(path, number)) for number, item in enumerate(items)]

    def _copy_pairs(self, table: Mapping[Tree, Tree], path: str) -> list[tuple[Tree, Tree]]:
        return [
            (self._copy_key(key, path), self._copy(item, _join(path, key)))
            for key, item in table.items()
        ]

    def _copy_key(self, key: Tree, path: str) -> Tree:
        if isinstance(key, torch.Tensor):
            raise SaveRefused(f"{path!r} has a tensor as a key, which can't be stored")
        return self._copy(key, path)


def _join(path: str, key: object) -> str:
    return child_path(path, key if isinstance(key, str) else repr_key(key))


def _is_numpy_scalar(value: object) -> bool:
    """Whether the value is a number or text of numpy's, recognised without importing numpy."""
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ != "ndarray" and hasattr(kind, "item")


def _refused(value: object, path: str) -> SaveRefused:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    place = repr(path) if path else "the value"
    if hasattr(value, "state_dict"):  # a module, an optimizer, a scheduler
        advice = "Save its state_dict()."
    else:
        advice = _ADVICE.get(name, "Save it as plain values: numbers, texts, lists, dicts.")
    return SaveRefused(f"{place} is of type {name}, which can't be stored as data", advice=advice)


def _device(device: torch.device) -> tuple[Value, ...]:
    return (device.type,) if device.index is None else (device.type, device.index)
