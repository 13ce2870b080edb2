"""A file's tree of values with its tensors in it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch

from torchkeep.contents import Array, Contents, DictObject, Object, TensorEntry, Value, child_path
from torchkeep.errors import FileProblem, UnsupportedContent
from torchkeep.files import Scratch
from torchkeep.formats import describe_whole
from torchkeep.identify import StateDict, identify
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.selection import choose
from torchkeep.loading.devices import usable_device
from torchkeep.matching.keys import strip_wrappers
from torchkeep.matching.tied import tied_names
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.tensors import TensorReader


def load(
    path: str | os.PathLike[str],
    *,
    select: str | None = None,
    device: str | torch.device = "cpu",
    mmap: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Any:
    """Return what a file holds, with live tensors, running nothing in it.

    Each tensor of a file that torchkeep saved is compared with the digest in the file.

    Args:
        path: the file.
        select: None for everything. `auto`, `ema` or a name returns one state dict (see
            `load_into`) as a plain dict, its keys without the prefixes of wrappers.
        device: where the tensors are made, whatever they were saved from.
        mmap: map the file instead of reading it; see `TensorReader`. Nothing is read yet then, and
            so nothing is compared with digests.
        limits: bounds of the work that a file may cause. What lies packed in an archive is unpacked
            into temporary files, up to `pickle_nbytes`.

    Returns:
        The tree as it was saved: dicts (an OrderedDict keeps its `_metadata`), lists, tuples, plain
        values, tensors, and NumPy's arrays (as tensors, where NumPy is missing). Tensors that
        shared memory share it; parameters are `nn.Parameter`s. What would need a class or a
        function stays an inert `contents.Object`.

    Raises:
        FileProblem: the file is missing, damaged (a tensor that differs from its digest is
            named), or of no readable kind.
        LoadMismatch: `select` fits no state dict, or several.
        WrongArgument: the device can't be used here.
    """
    device = usable_device(device)
    with Scratch() as scratch:
        contents = describe_whole(path, limits=limits, scratch=scratch)
        try:
            chosen = None if select is None else choose(identify(contents, limits), select)[0]
            return _load(path, contents, chosen, device, mmap=mmap)
        except FileProblem as problem:
            raise problem.in_file(path) from None


def _load(
    path: str | os.PathLike[str],
    contents: Contents,
    chosen: StateDict | None,
    device: str | torch.device,
    *,
    mmap: bool,
) -> Any:
    tied = tied_names(contents)
    digests = stored_digests(contents)
    with TensorReader(
        path, device=device, mmap=mmap, digests=digests, stamps=contents.stamps
    ) as reader:
        if chosen is None:
            tree = materialize_tree(contents.root, reader)
        else:
            bare = strip_wrappers(chosen.entries)
            tree = materialize_tree({bare[k]: entry for k, entry in chosen.entries.items()}, reader)
            tied = {name: bare[kept] for name, kept in tied.items()}
    return tree | {name: tree[kept] for name, kept in tied.items()} if tied else tree


def materialize_tree(root: Value, reader: TensorReader) -> Any:
    """Return a tree of inert values with a tensor in place of each entry.

    What stands in it twice is made once, so that the same object is in both places again.
    """
    try:
        return _Materializer(reader).convert(root, "")
    except RecursionError:
        raise UnsupportedContent("the file's values are nested too deeply to be built") from None


_MADE = (TensorEntry, Array, Object, dict, list, tuple, set, frozenset)


class _Materializer:
    def __init__(self, reader: TensorReader) -> None:
        self.reader = reader
        self.made: dict[int, Any] = {}

    def convert(self, value: Value, path: str) -> Any:
        if not isinstance(value, _MADE):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = self._make(value, path)
        return self.made[id(value)]

    def _make(self, value: Value, path: str) -> Any:
        if isinstance(value, TensorEntry):
            return self.reader.materialize(value, path)
        if isinstance(value, Array):
            return _as_array(self.reader.materialize(value.entry, path))
        if isinstance(value, tuple | set | frozenset):
            return type(value)(self._convert_items(value, path))
        # What can hold itself is known before it is filled.
        if isinstance(value, list):
            made: Any = []
            self.made[id(value)] = made
            made.extend(self._convert_items(value, path))
        elif isinstance(value, dict):
            made = _empty_like(value)
            self.made[id(value)] = made
            self._fill_dict(made, value, path)
        else:
            made = Object(value.callee, ())
            self.made[id(value)] = made
            self._fill_object(made, value, path)
        return made

    def _convert_items(self, items: Iterable[Value], path: str) -> list[Any]:
        return [self.convert(item, child_path(path, number)) for number, item in enumerate(items)]

    def _fill_dict(self, made: dict[Any, Any], value: dict[Value, Value], path: str) -> None:
        for key, item in value.items():
            made[self.convert(key, path)] = self.convert(item, child_path(path, key))
        attributes = value.attributes if isinstance(value, DictObject) else {}
        if isinstance(made, DictObject):
            made.attributes = self.convert(attributes, path)
        elif "_metadata" in attributes:  # what a module's state dict keeps its versions in
            made._metadata = self.convert(attributes["_metadata"], child_path(path, "_metadata"))  # type: ignore[attr-defined]

    def _fill_object(self, made: Object, value: Object, path: str) -> None:
        made.args = self.convert(value.args, path)
        made.kwargs = self.convert(value.kwargs, path)
        made.state = self.convert(value.state, path)
        made.items = self.convert(value.items, path)
        made.pairs = self.convert(value.pairs, path)


def _as_array(tensor: torch.Tensor) -> Any:
    try:
        return tensor.numpy(force=True)
    except RuntimeError:  # NumPy is not installed
        return tensor


def _empty_like(value: dict[Value, Value]) -> dict[Any, Any]:
    if not isinstance(value, DictObject):
        return {}
    if value.class_path == "collections.OrderedDict":
        return OrderedDict()
    return DictObject(value.class_path)
