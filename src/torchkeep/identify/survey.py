"""One pass over a file's tree that sorts what it meets: models, optimizers, values, the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchkeep.contents import Contents, Files, Object, TensorEntry, Value
from torchkeep.formats.containers import CONTAINERS
from torchkeep.identify.frameworks import is_training_state
from torchkeep.identify.modules import ModuleNode, is_module, module_tree
from torchkeep.identify.optimizers import (
    Optimizer,
    is_optimizer,
    is_rng_state,
    is_scaler,
    is_scheduler,
    optimizer,
)
from torchkeep.identify.scalars import MOST_SCALARS, is_scalar, with_numbers
from torchkeep.identify.state_dicts import (
    StateDict,
    is_state_dict,
    state_dict_of_mapping,
    state_dict_of_module,
)
from torchkeep.identify.tree import Budget, children

_LONGEST_VALUE_LIST = 100_000
"""Items of a list of plain values (class names, say) that is kept as one value."""
_LONGEST_INDEX = 100_000
"""Names of an index, such as `class_to_idx` or a vocabulary, that is kept as one value."""
_MAX_VALUES = 10_000
"""Plain values that are listed; data sets pickled as lists of numbers have millions."""

PLAIN = (bool, int, float, complex, str, type(None))
"""What is kept as a value of its own."""
_NO_VALUES = frozenset({"numpy.dtype"})
"""Classes whose insides are no values of the user's."""


@dataclass(slots=True)
class Survey:
    """What was met, in the file's order."""

    state_dicts: list[StateDict] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[str] = field(default_factory=list)
    scalers: list[str] = field(default_factory=list)
    rng: list[str] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    modules: list[tuple[str, ModuleNode]] = field(default_factory=list)


def survey(contents: Contents, budget: Budget) -> Survey:
    """Return what is in a file.

    Raises:
        LimitReached: its values unfold too far.
    """
    found = Survey()
    if is_training_state(contents):
        return found
    if CONTAINERS[contents.container].is_one_state_dict and isinstance(contents.root, dict):
        # The formats have no other use, whatever the tensors' names.
        found.state_dicts.append(state_dict_of_mapping("", contents.root))
    else:
        _Walk(contents, budget, found).visit("", contents.root, 0)
        found.values = with_numbers(found.values)
    return found


class _Walk:
    """The walk's state: where it writes, what it has seen, what it may still spend."""

    def __init__(self, contents: Contents, budget: Budget, found: Survey) -> None:
        self.sources = contents.sources
        self.budget = budget
        self.found = found
        self.seen: set[int] = set()
        self.whole: dict[int, Value] = {}  # what is kept as one value, by the id of what it is
        self.num_scalars = 0

    def visit(self, path: str, value: Value, depth: int, key: str = "") -> None:
        self.budget.spend(depth, path)
        if isinstance(value, PLAIN):
            self.keep(path, value)
        elif is_scalar(value):
            self.keep_scalar(path, value)
        elif not isinstance(value, Files) and self.is_sorted(path, key, value):
            return
        elif id(value) not in self.seen and not _is_inner(value):
            # What stands in two places is told of once; a tree that contains itself ends here.
            self.seen.add(id(value))
            for name, child in children(value):
                self.visit(f"{path}.{name}" if path else name, child, depth + 1, name)

    def is_sorted(self, path: str, key: str, value: Value) -> bool:
        """Whether a value is told of as a whole; it was put where it belongs then."""
        if self.sort(path, key, value) or isinstance(value, TensorEntry):
            return True
        whole = self.as_one(value) if path else None
        if whole is not None:
            self.keep(path, whole)
        return whole is not None

    def sort(self, path: str, name: str, value: Value) -> bool:
        """Put a value where it belongs; return False if it is nothing in particular."""
        found = self.found
        if is_module(value):
            node = module_tree(value, self.sources, self.budget, depth=1)
            found.modules.append((path, node))
            state_dict = state_dict_of_module(path, node)
            if state_dict.entries or not path:  # a loss, a metric or a transform has none
                found.state_dicts.append(state_dict)
        elif is_optimizer(value):
            found.optimizers.append(optimizer(path, value, self.budget))
        elif is_scheduler(value):
            found.schedulers.append(path)
        elif is_scaler(value):
            found.scalers.append(path)
        elif path and is_rng_state(name, value):
            found.rng.append(path)
        elif is_state_dict(value):
            found.state_dicts.append(state_dict_of_mapping(path, value))
            for key, item in value.items():
                if isinstance(item, PLAIN):
                    self.keep(f"{path}.{key}" if path else key, item)
        else:
            return False
        return True

    def as_one(self, value: Value) -> Value:
        """Return the list or index that a value is, as plain data; None if it is neither."""
        if id(value) not in self.whole:  # one that stands in many places is looked at once
            plain: Value = None
            if isinstance(value, list | tuple) and _is_plain_list(value):
                plain = list(value)
            elif isinstance(value, dict) and is_index(value):
                plain = dict(value)
            self.whole[id(value)] = plain
        return self.whole[id(value)]

    def keep_scalar(self, path: str, value: Value) -> None:
        """Keep a tensor of no dimensions, whose number is a value."""
        self.num_scalars += 1
        if self.num_scalars <= MOST_SCALARS:
            self.keep(path, value)

    def keep(self, path: str, value: Value) -> None:
        if path and len(self.found.values) < _MAX_VALUES:
            self.found.values[path] = value


def _is_inner(value: Value) -> bool:
    return isinstance(value, Object) and value.class_path in _NO_VALUES


def _is_plain_list(value: list[Value] | tuple[Value, ...]) -> bool:
    return len(value) <= _LONGEST_VALUE_LIST and all(isinstance(item, PLAIN) for item in value)


def is_index(value: dict[Value, Value]) -> bool:
    """Whether a mapping numbers names, or names numbers, from 0 on: `class_to_idx`, `id2label`.

    >>> is_index({"cat": 0, "dog": 1}), is_index({"0": "cat", "1": "dog"}), is_index({"lr": 1})
    (True, True, False)
    """
    if not 2 <= len(value) <= _LONGEST_INDEX:
        return False
    names, numbers = list(value.keys()), list(value.values())
    if type(names[0]) is int or type(numbers[0]) is str:
        names, numbers = numbers, [_number(item) for item in names]
    return (
        all(type(item) is str for item in names)
        and all(type(item) is int for item in numbers)
        and set(numbers) == set(range(len(value)))
    )


def _number(key: Value) -> Value:
    """Return the number that a key is, or is the decimal text of; anything else as it is."""
    if isinstance(key, str) and len(key) <= _LONGEST_NUMBER and key.isdecimal() and key.isascii():
        return int(key) if str(int(key)) == key else key
    return key


_LONGEST_NUMBER = len(str(_LONGEST_INDEX))
