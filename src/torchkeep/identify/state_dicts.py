"""State dicts: telling them from other tables of tensors, and what each is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torchkeep.contents import Array, DictObject, TensorEntry, Value
from torchkeep.identify.modules import ModuleNode
from torchkeep.matching.keys import AVERAGE_COUNTER, strip_wrappers

Role = Literal["model", "ema", "other"]

_AVERAGES = frozenset("ema swa avg average averaged shadow polyak emamodel modelema".split())
"""Words in a path or a class's name that tell of a moving average of the parameters."""
_MODEL_NAMES = frozenset(
    "model state_dict model_state_dict model_state net network params weights module "
    "model_weights net_state_dict model_dict model_params model_statedict modelstate net_state "
    "network_state_dict module_state_dict weight pytorch_model adapter_model".split()
)
"""Last names in a path that say that this is the model, and not one of several networks."""
_FILE_SUFFIX = re.compile(r"\.(safetensors|bin|pth?|ckpt)$")
"""What ends the name of a file in a folder or in an archive."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_KEY = re.compile(r"[^\s/=\\.]+(\.[^\s/=\\.]+)+")
"""A parameter's dotted name; a file's or a metric's name is none."""
_TENSOR_NAMES = frozenset("weight bias running_mean running_var gamma beta".split())
_TENSOR_SUFFIXES = ("_weight", "_bias", "_embedding", "_embeddings")
_BUFFER_NAMES = frozenset("running_mean running_var num_batches_tracked".split())
_BUFFER_DTYPES = frozenset("bool int16 int32 int64 uint16 uint32 uint64".split())
"""Types that no parameter has: they can't be trained, and quantized ones are of 8 bits."""
_AVERAGED_LIST = "shadow_params"
"""Where torch_ema and diffusers keep the averages, in the order of the parameters."""


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

    At least half of its values are tensors or arrays, its keys are texts, and something says that
    they are parameters: dotted names, names like `weight`, or the `_metadata` that `state_dict()`
    adds.
    """
    if not isinstance(value, dict) or not value:
        return False
    if _averaged_list(value):
        return True
    keys = [key for key, item in value.items() if isinstance(item, TensorEntry | Array)]
    if not all(isinstance(key, str) for key in value) or len(keys) * 2 < len(value):
        return False
    if isinstance(value, DictObject) and "_metadata" in value.attributes:
        return True
    return any(
        key in _TENSOR_NAMES or key.endswith(_TENSOR_SUFFIXES) or _KEY.fullmatch(key)
        for key in keys
    )


def _averaged_list(value: dict[Value, Value]) -> list[TensorEntry]:
    """Return the averages that are kept as a list; nothing if there are none."""
    averages = value.get(_AVERAGED_LIST)
    if not isinstance(averages, list) or not all(isinstance(x, TensorEntry) for x in averages):
        return []
    return averages


def state_dict_of_mapping(name: str, value: dict[Value, Value]) -> StateDict:
    """Return the state dict that a mapping is; its values that are no tensors are left out.

    Arrays count as the tensors that are made of them (the models of detectron2's zoo are such).
    """
    averages = _averaged_list(value)
    entries = {f"{_AVERAGED_LIST}.{index}": item for index, item in enumerate(averages)}
    entries |= {
        key: item.entry if isinstance(item, Array) else item
        for key, item in value.items()
        if isinstance(item, TensorEntry | Array)
    }
    parameters = [
        entry
        for key, entry in entries.items()
        if key.rpartition(".")[2] not in _BUFFER_NAMES
        and key != AVERAGE_COUNTER
        and entry.dtype not in _BUFFER_DTYPES
    ]
    role: Role = "ema" if averages else _role(name, entries)
    return StateDict(name, role, _prefix(entries), entries, _count(parameters))


def state_dict_of_module(name: str, node: ModuleNode) -> StateDict:
    """Return the state dict that a pickled module would give."""
    entries = node.state_dict()
    parameters = [entry for _, part in node.walk() for entry in part.parameters.values()]
    cls = node.class_path.rpartition(".")[2]
    role: Role = "ema" if _words(cls) & _AVERAGES else _role(name, entries)
    return StateDict(name, role, _prefix(entries), entries, _count(parameters))


def _role(name: str, entries: dict[str, TensorEntry]) -> Role:
    """Return what a state dict is for: `other` where the name doesn't say."""
    words = _words(name)
    if AVERAGE_COUNTER in entries or (words & _AVERAGES and "exp" not in words):
        return "ema"  # but exp_avg is Adam's
    last = _FILE_SUFFIX.sub("", name).rpartition("/")[2].rpartition(".")[2].lower()
    return "model" if not name or last in _MODEL_NAMES else "other"


def _words(text: str) -> set[str]:
    """Return the words that a name is made of, in lower case.

    >>> sorted(_words("model.netG_EMA"))
    ['ema', 'g', 'model', 'net']
    """
    return {word.lower() for word in _WORD.findall(text)}


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
