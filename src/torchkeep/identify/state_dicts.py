"""State dicts: telling them from other tables of tensors, and what each is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torchkeep.contents import DictObject, TensorEntry, Value
from torchkeep.identify.modules import ModuleNode
from torchkeep.matching.keys import AVERAGE_COUNTER, strip_wrappers

Role = Literal["model", "ema", "other"]

_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|avg|shadow)($|[._])|_ema$|^ema", re.IGNORECASE)
_MODEL_NAMES = frozenset(
    "model state_dict model_state_dict model_state net network params weights module "
    "model_weights net_state_dict state_dicts.model".split()
)
_TENSOR_NAMES = frozenset("weight bias running_mean running_var gamma beta".split())
_BUFFER_NAMES = frozenset("running_mean running_var num_batches_tracked".split())


@dataclass(frozen=True, slots=True)
class StateDict:
    """A state dict in the file."""

    name: str
    """Its path in the file; empty if it is the file's root."""
    role: Role
    """What it is for: the model, a moving average of it, or something else."""
    prefix: str
    """What wrappers put before every key, such as `module.`; empty if nothing."""
    entries: dict[str, TensorEntry]
    """Its tensors by key, as written."""
    num_parameters: int
    """Elements of its parameters. Shared ones count once, known buffers do not."""

    @property
    def num_tensors(self) -> int:
        """Number of tensors."""
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors' elements; tensors that share memory count once."""
        unique = {entry.memory: entry.nbytes for entry in self.entries.values()}
        return sum(unique.values())


def is_state_dict(value: Value) -> bool:
    """Whether a mapping is a state dict.

    At least half of its values are tensors, its keys are texts, and something says that they are
    parameters: dotted names, names like `weight`, or the `_metadata` that `state_dict()` adds.
    """
    if not isinstance(value, dict) or not value:
        return False
    keys = [key for key, item in value.items() if isinstance(item, TensorEntry)]
    if not all(isinstance(key, str) for key in value) or len(keys) * 2 < len(value):
        return False
    if isinstance(value, DictObject) and "_metadata" in value.attributes:
        return True
    return bool(keys) and any(
        "." in key or key in _TENSOR_NAMES or key.endswith(("_weight", "_bias")) for key in keys
    )


def state_dict_of_mapping(name: str, value: dict[Value, Value]) -> StateDict:
    """Return the state dict that a mapping is; its values that are no tensors are left out."""
    entries = {key: item for key, item in value.items() if isinstance(item, TensorEntry)}
    parameters = [
        entry
        for key, entry in entries.items()
        if key.rpartition(".")[2] not in _BUFFER_NAMES and key != AVERAGE_COUNTER
    ]
    return StateDict(name, _role(name, entries), _prefix(entries), entries, _count(parameters))


def state_dict_of_module(name: str, node: ModuleNode) -> StateDict:
    """Return the state dict that a pickled module would give."""
    entries = node.state_dict()
    parameters = [entry for _, part in node.walk() for entry in part.parameters.values()]
    return StateDict(name, _role(name, entries), _prefix(entries), entries, _count(parameters))


def _role(name: str, entries: dict[str, TensorEntry]) -> Role:
    if AVERAGE_COUNTER in entries or _AVERAGE.search(name):
        return "ema"
    last = name.rpartition(".")[2]
    return "model" if not name or name in _MODEL_NAMES or last in _MODEL_NAMES else "other"


def _prefix(entries: dict[str, TensorEntry]) -> str:
    """Return the wrapper components that stand before every key."""
    prefixes = {
        key[: len(key) - len(bare)] if key.endswith(bare) else ""
        for key, bare in strip_wrappers(entries).items()
        if key != AVERAGE_COUNTER
    }
    return prefixes.pop() if len(prefixes) == 1 else ""


def _count(parameters: list[TensorEntry]) -> int:
    unique = {entry.memory: entry.numel for entry in parameters}
    return sum(unique.values())
