"""One pass over a file's tree that sorts what it meets: models, optimizers, values, the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchkeep.contents import Contents, TensorEntry, Value
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
from torchkeep.identify.state_dicts import (
    StateDict,
    is_state_dict,
    state_dict_of_mapping,
    state_dict_of_module,
)
from torchkeep.identify.tree import Budget, children

_LONGEST_VALUE_LIST = 1_000
"""Items of a list of plain values (class names, say) that is kept as one value."""
_MAX_VALUES = 10_000
"""Plain values that are listed; data sets pickled as lists of numbers have millions."""

_ONLY_TENSORS = frozenset("safetensors safetensors-sharded torch-sharded gguf onnx".split())
"""Containers that hold one state dict and nothing else."""

_PLAIN = (bool, int, float, str, type(None))


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
    if contents.container in _ONLY_TENSORS and isinstance(contents.root, dict):
        # The formats have no other use, whatever the tensors' names.
        found.state_dicts.append(state_dict_of_mapping("", contents.root))
    else:
        _Walk(contents, budget, found).visit("", contents.root, 0)
    return found


class _Walk:
    """The walk's state: where it writes, what it has seen, what it may still spend."""

    def __init__(self, contents: Contents, budget: Budget, found: Survey) -> None:
        self.sources = contents.sources
        self.budget = budget
        self.found = found
        self.seen: set[int] = set()

    def visit(self, path: str, value: Value, depth: int, key: str = "") -> None:
        self.budget.spend(depth, path)
        if isinstance(value, _PLAIN):
            self.keep(path, value)
        elif self.sort(path, key, value) or isinstance(value, TensorEntry):
            return
        elif isinstance(value, list | tuple) and _is_plain_list(value):
            self.keep(path, list(value))
        elif id(value) not in self.seen:
            # What stands in two places is told of once; a tree that contains itself ends here.
            self.seen.add(id(value))
            for name, child in children(value):
                self.visit(f"{path}.{name}" if path else name, child, depth + 1, name)

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
                if isinstance(item, _PLAIN):
                    self.keep(f"{path}.{key}" if path else key, item)
        else:
            return False
        return True

    def keep(self, path: str, value: Value) -> None:
        if path and len(self.found.values) < _MAX_VALUES:
            self.found.values[path] = value


def _is_plain_list(value: list[Value] | tuple[Value, ...]) -> bool:
    return len(value) <= _LONGEST_VALUE_LIST and all(isinstance(item, _PLAIN) for item in value)
