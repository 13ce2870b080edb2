"""A file's whole tree as a torch zip may hold it: values and tensors, and nothing to be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from torchkeep.contents import (
    ITEM_SIZE,
    Array,
    DictObject,
    Global,
    Object,
    TensorEntry,
    Value,
    child_path,
    repr_key,
)
from torchkeep.errors import SaveRefused
from torchkeep.identify.survey import PLAIN

_KEPT_MAPPINGS = ("collections.OrderedDict", "collections.Counter")
"""Mappings with a class of their own that `weights_only` makes."""

_DROPPED = object()

Table = Mapping[str, str]
"""New names of the keys of a state dict."""


class Tree:
    """A source's tree, made over. What stands in it twice is one object again.

    Args:
        tensor: gives the entry to be written for one of the source: it, its path, and whether it is
            in a state dict.
        tables: by the `id` of each mapping or module that is a state dict, the new names of its
            keys.
        modules: by the `id` of each pickled module, its state dict.
        left_out: `id`s of values that are to be left out.
        drop_objects: leave out what would need a class, instead of refusing it.

    Attributes:
        left_out: the paths of what was left out.
        notes: what became something else, a sentence each.
    """

    def __init__(
        self,
        tensor: Callable[[TensorEntry, str, bool], TensorEntry],
        *,
        tables: Mapping[int, Table],
        modules: Mapping[int, dict[str, TensorEntry]],
        left_out: Set[int],
        drop_objects: bool,
    ) -> None:
        self._tensor = tensor
        self._tables = tables
        self._modules = modules
        self._omitted = left_out
        self._drop_objects = drop_objects
        self._made: dict[int, Value] = {}
        self.left_out: list[str] = []
        self.notes: list[str] = []

    def convert(self, root: Value) -> Value:
        """Return the tree.

        Raises:
            SaveRefused: a value would need a class or a function; it is named.
            FileProblem: a tensor can't be read.
        """
        try:
            made = self._convert(root, "", in_table=False)
        except RecursionError:
            raise SaveRefused("the file's values are nested too deeply to be stored") from None
        if made is _DROPPED:
            raise SaveRefused("nothing would be left", advice="Don't leave out all of the file.")
        return made

    def _convert(self, value: Value, path: str, *, in_table: bool) -> Value:
        if isinstance(value, (*PLAIN, bytes, bytearray)):
            return value
        if isinstance(value, TensorEntry):
            return self._tensor(value, path, in_table)
        if id(value) in self._omitted:
            self.left_out.append(path)
            return _DROPPED
        if id(value) not in self._made:
            self._make(value, path, in_table=in_table)
        return self._made[id(value)]

    def _make(self, value: Value, path: str, *, in_table: bool) -> None:
        """Make a value anew. What can hold itself is known before it is filled."""
        if isinstance(value, Array):
            # The array's entry is another object each time, and has to stay the same one.
            self._made[id(value)] = self._tensor(value.entry, path, in_table)
            self.notes.append(f"{path!r} is a tensor, and was a NumPy array.")
        elif id(value) in self._modules:
            self.notes.append(f"{path or 'the root'!r} is a state dict, and was a whole model.")
            made: Any = {}
            self._made[id(value)] = made
            self._fill(made, self._modules[id(value)], path, self._tables.get(id(value), {}))
        elif isinstance(value, dict):
            made = self._empty(value, path)
            self._made[id(value)] = made
            self._fill(made, value, path, self._tables.get(id(value)))
            self._copy_attributes(made, value, path)
        elif isinstance(value, list):
            made = []
            self._made[id(value)] = made
            made.extend(self._items(value, path))
        elif isinstance(value, tuple | set):
            self._made[id(value)] = type(value)(self._items(value, path))
        else:
            self._made[id(value)] = self._object(value, path)

    def _empty(self, value: dict[Value, Value], path: str) -> dict[Value, Value]:
        if not isinstance(value, DictObject):
            return {}
        if value.class_path in _KEPT_MAPPINGS:
            return DictObject(value.class_path)
        self.notes.append(f"{path or 'the root'!r} is a dict, and was a {value.class_path}.")
        return {}

    def _fill(
        self, made: dict[Value, Value], value: dict[Any, Value], path: str, names: Table | None
    ) -> None:
        for key, item in value.items():
            name = repr_key(key) if not isinstance(key, str) else key
            within = child_path(path, name)
            new = self._convert(item, within, in_table=names is not None)
            if new is not _DROPPED:
                renamed = (names or {}).get(key) if isinstance(key, str) else None
                new_key = renamed or self._convert(key, within, in_table=False)
                if new_key is not _DROPPED:
                    made[new_key] = new

    def _copy_attributes(
        self, made: dict[Value, Value], value: dict[Value, Value], path: str
    ) -> None:
        """Copy what was set on a state dict: the versions of its modules, by their old names."""
        names = self._tables.get(id(value), {})
        is_renamed = any(key != name for key, name in names.items())
        if isinstance(value, DictObject) and isinstance(made, DictObject) and not is_renamed:
            made.attributes = self._convert(value.attributes, path, in_table=False)

    def _items(self, items: Any, path: str) -> list[Value]:
        """Return what is in a list; None stands in the place of what is left out."""
        made = []
        for number, item in enumerate(items):
            within = child_path(path, number)
            new = self._convert(item, within, in_table=False)
            made.append(None if new is _DROPPED else new)
        return made

    def _object(self, value: Value, path: str) -> Value:
        """Return a name that every loader knows; leave out or refuse the rest, frozensets too."""
        if isinstance(value, Global):
            if value.module == "torch" and value.name in ITEM_SIZE:
                return value
            what = str(value)
        else:
            what = value.class_path if isinstance(value, Object) else type(value).__qualname__
        if self._drop_objects:
            self.left_out.append(path)
            return _DROPPED
        raise SaveRefused(
            f"{path or 'the root'!r} would need {what} to be imported",
            advice="Leave out all such values with drop_objects=True (--drop-objects), or choose "
            "one state dict with select (--select).",
        )
