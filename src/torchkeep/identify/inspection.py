"""What torchkeep can say about a file, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchkeep.contents import Contents, Finding, Global, Object, TensorEntry, Value
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.optimizers import Optimizer
from torchkeep.identify.safety import Safety
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.tree import Budget, NamedTensor, named_tensors
from torchkeep.pickles.limits import DEFAULT_LIMITS

FileRole = Literal[
    "state_dict", "module", "checkpoint", "optimizer", "program", "tensor", "object", "unknown"
]

SCHEMA = 1
"""The version of the JSON form; it grows when a field changes its meaning or goes away."""

_LONGEST_LIST = 1_000
"""Items of a list that the JSON form spells out."""
_LARGEST_INT = 1 << 63
"""Integers that other languages' JSON readers may not take are written as text."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """Whether the file's own statements about its sizes, ranges and checksums agree."""

    ok: bool
    """Whether nothing is damaged, as far as it was looked at."""
    findings: tuple[Finding, ...]
    """What is damaged."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is and what it holds. No tensor bytes were read for it."""

    path: Path
    """The file, as it was asked for."""
    nbytes: int
    """Its size on disk."""
    container: str
    """The kind of file: `torch-zip`, `torch-legacy`, `safetensors`, `pickle`."""
    role: FileRole
    """What it is used for."""
    summary: str
    """The same in one sentence."""
    state_dicts: tuple[StateDict, ...]
    """The state dicts in it, those of pickled modules included, in the file's order."""
    optimizers: tuple[Optimizer, ...]
    """The optimizers' states in it."""
    schedulers: tuple[str, ...]
    """Paths of learning-rate schedulers."""
    scalers: tuple[str, ...]
    """Paths of gradient scalers."""
    rng: tuple[str, ...]
    """Paths of random generators' states."""
    values: dict[str, Value]
    """The plain values by path: epoch, step, loss, class names, arguments."""
    modules: tuple[tuple[str, ModuleNode], ...]
    """The pickled modules in it, each with its path."""
    framework: str | None
    """The training framework that wrote it, if it can be told."""
    architecture: None
    """The network's architecture; not recognised yet."""
    safety: Safety
    """What loading it with an ordinary unpickler could do."""
    integrity: Integrity
    """Whether it is whole."""
    contents: Contents
    """All that was read: the tree of values itself."""

    def tensors(self) -> tuple[NamedTensor, ...]:
        """Return every tensor of the file, once for each place where it stands."""
        return named_tensors(self.contents.root, Budget.for_contents(self.contents, DEFAULT_LIMITS))

    def to_json(self, *, tensors: bool = False) -> dict[str, Any]:
        """Return the documented JSON form (docs/files.md) as plain dicts and lists.

        Args:
            tensors: include the table of all tensors.
        """
        form: dict[str, Any] = {
            "schema": SCHEMA,
            "path": str(self.path),
            "nbytes": self.nbytes,
            "container": self.container,
            "role": self.role,
            "summary": self.summary,
            "state_dicts": [_state_dict(item) for item in self.state_dicts],
            "optimizers": [_optimizer(item) for item in self.optimizers],
            "schedulers": list(self.schedulers),
            "scalers": list(self.scalers),
            "rng": list(self.rng),
            "values": {path: jsonable(value) for path, value in self.values.items()},
            "modules": [{**_module(node), "name": path} for path, node in self.modules],
            "framework": self.framework,
            "architecture": self.architecture,
            "metadata": dict(self.contents.metadata),
            "safety": _safety(self.safety),
            "integrity": {
                "ok": self.integrity.ok,
                "findings": [_finding(item) for item in self.integrity.findings],
            },
        }
        if tensors:
            form["tensors"] = [_tensor(item) for item in self.tensors()]
        return form


def jsonable(value: Value, depth: int = 20) -> Any:
    """Return a value in JSON's terms; what JSON lacks becomes a short text in angle brackets."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        bits = value.bit_length()
        if abs(value) < _LARGEST_INT:
            return value
        return str(value) if bits <= 256 else f"<integer of {bits} bits>"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple | dict | set | frozenset):
        return _jsonable_container(value, depth)
    return describe_value(value)


def _jsonable_container(value: Value, depth: int) -> Any:
    if len(value) > _LONGEST_LIST or depth == 0:
        return describe_value(value)
    if isinstance(value, dict):
        return {str(jsonable(key, 1)): jsonable(item, depth - 1) for key, item in value.items()}
    return [jsonable(item, depth - 1) for item in value]


def describe_value(value: Value) -> str:
    """Return a short text in angle brackets for a value that has no JSON form."""
    if isinstance(value, TensorEntry):
        return f"<{value.dtype} tensor {list(value.shape)}>"
    if isinstance(value, Object):
        return f"<{value.class_path}>"
    if isinstance(value, Global):
        return f"<{value}>"
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, complex):
        return f"<{value}>"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"<{type(value).__name__} of {len(value)}>"
    return f"<{type(value).__name__}>"


def _state_dict(item: StateDict) -> dict[str, Any]:
    return {
        "name": item.name,
        "role": item.role,
        "prefix": item.prefix,
        "num_tensors": item.num_tensors,
        "num_parameters": item.num_parameters,
        "nbytes": item.nbytes,
    }


def _optimizer(item: Optimizer) -> dict[str, Any]:
    return {
        "name": item.name,
        "family": item.family,
        "param_groups": [jsonable(group) for group in item.param_groups],
        "num_states": item.num_states,
        "nbytes": item.nbytes,
    }


def _module(node: ModuleNode) -> dict[str, Any]:
    form: dict[str, Any] = {
        "name": node.name,
        "class": node.class_path,
        "training": node.training,
        "attributes": {name: jsonable(value) for name, value in node.attributes.items()},
        "parameters": {name: _shape(entry) for name, entry in node.parameters.items()},
        "buffers": {name: _shape(entry) for name, entry in node.buffers.items()},
        "children": [_module(child) for child in node.children],
    }
    if node.source is not None:
        form["source"] = node.source
    return form


def _shape(entry: TensorEntry) -> dict[str, Any]:
    return {
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "requires_grad": entry.requires_grad,
    }


def _tensor(item: NamedTensor) -> dict[str, Any]:
    return {
        "path": item.path,
        "dtype": item.entry.dtype,
        "shape": list(item.entry.shape),
        "stride": list(item.entry.stride),
        "nbytes": item.entry.nbytes,
        "requires_grad": item.entry.requires_grad,
        "alias_of": item.alias_of,
        "device": item.entry.storage.device,
    }


def _finding(item: Finding) -> dict[str, str]:
    return {
        "rule": item.rule,
        "severity": item.severity,
        "place": item.place,
        "text": item.text,
    }


def _safety(item: Safety) -> dict[str, Any]:
    return {
        "verdict": item.verdict,
        "globals": list(item.globals),
        "findings": [_finding(finding) for finding in item.findings],
        "weights_only": item.weights_only,
        "blocked": list(item.blocked),
    }
