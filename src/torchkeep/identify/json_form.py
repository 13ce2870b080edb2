"""The documented JSON forms (docs/cli.md), as plain dicts and lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torchkeep.contents import Array, Finding, Global, Object, TensorEntry, Value
from torchkeep.errors import FileProblem
from torchkeep.formats.own.metadata import SAMPLES, STRUCTURE
from torchkeep.formats.own.samples import summary
from torchkeep.identify.architectures import NOT_IN_WEIGHTS, ArchitectureMatch
from torchkeep.wording import counted

if TYPE_CHECKING:  # these have their form from here
    from torchkeep.identify.inspection import Inspection
    from torchkeep.identify.modules import ModuleNode
    from torchkeep.identify.optimizers import Optimizer
    from torchkeep.identify.safety import Safety
    from torchkeep.identify.state_dicts import StateDict
    from torchkeep.identify.tree import NamedTensor

SCHEMA = 1
"""The version of the JSON forms; it grows when a field changes its meaning or goes away."""

_LONGEST_LIST = 100_000
"""Items of a list or mapping that the JSON form spells out, if there is room."""
_LARGEST_INT = 1 << 63
"""Integers that other languages' JSON readers may not take are written as text."""


class Room:
    """How many more nested values may be spelled out.

    Values that contain one another unfold, as in every walk over a file's tree; see `tree.Budget`.
    """

    __slots__ = ("left",)

    def __init__(self, left: int = 1_000) -> None:
        self.left = left


def json_form(inspection: Inspection, *, tensors: bool) -> dict[str, Any]:
    """Return an inspection in JSON's terms, with the table of all tensors if it is asked for."""
    room = Room(10_000 + inspection.nbytes)
    form: dict[str, Any] = {
        "schema": SCHEMA,
        "path": str(inspection.path),
        "nbytes": inspection.nbytes,
        "container": inspection.container,
        "role": inspection.role,
        "summary": inspection.summary,
        "state_dicts": [_state_dict(item) for item in inspection.state_dicts],
        "optimizers": [_optimizer(item, room) for item in inspection.optimizers],
        "schedulers": list(inspection.schedulers),
        "scalers": list(inspection.scalers),
        "rng": list(inspection.rng),
        "values": {path: jsonable(value, room) for path, value in inspection.values.items()},
        "modules": [{**module_form(node, room), "name": path} for path, node in inspection.modules],
        "framework": inspection.framework,
        "architecture": [_architecture(match) for match in inspection.architecture] or None,
        "metadata": readable_metadata(inspection.metadata),
        "safety": _safety(inspection.safety),
        "integrity": inspection.integrity.to_json(),
        "problem": _problem(inspection.contents.problem),
        "members": [json_form(member, tensors=False) for member in inspection.members],
    }
    if tensors:
        form["tensors"] = [_tensor(item) for item in inspection.tensors()]
    return form


_IN_WORDS: dict[str, Callable[[str], str]] = {
    SAMPLES: summary,
    STRUCTURE: lambda text: counted(len(text), "character"),
}
"""Metadata of ours that is said in words, since it is long and only a program reads it."""


def readable_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a file's metadata with the samples and the structure in it told in a few words."""
    return {
        key: _IN_WORDS[key](text) if key in _IN_WORDS else text for key, text in metadata.items()
    }


def jsonable(value: Value, room: Room | None = None, depth: int = 20) -> Any:
    """Return a value in JSON's terms.

    What JSON lacks, and what there is no room for, becomes a short text in angle brackets.
    """
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
        return _jsonable_container(value, Room() if room is None else room, depth)
    return describe_value(value)


def _jsonable_container(value: Value, room: Room, depth: int) -> Any:
    if depth == 0 or len(value) > min(_LONGEST_LIST, room.left):
        return describe_value(value)
    room.left -= 1 + len(value)
    if isinstance(value, dict):
        keys = [str(jsonable(key, room, 1)) for key in value]
        items = [jsonable(item, room, depth - 1) for item in value.values()]
        return dict(zip(keys, items, strict=True))
    return [jsonable(item, room, depth - 1) for item in value]


def describe_value(value: Value) -> str:
    """Return a short text in angle brackets for a value that has no JSON form."""
    if isinstance(value, TensorEntry):
        return f"<{value.dtype} tensor {list(value.shape)}>"
    if isinstance(value, Array):
        return f"<{value.dtype} array {list(value.shape)}>"
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


def _optimizer(item: Optimizer, room: Room) -> dict[str, Any]:
    return {
        "name": item.name,
        "family": item.family,
        "param_groups": [jsonable(group, room) for group in item.param_groups],
        "num_states": item.num_states,
        "nbytes": item.nbytes,
    }


def module_form(node: ModuleNode, room: Room) -> dict[str, Any]:
    """Return a module and all below it in JSON's terms."""
    form: dict[str, Any] = {
        "name": node.name,
        "class": node.class_path,
        "training": node.training,
        "attributes": {name: jsonable(value, room) for name, value in node.attributes.items()},
        "parameters": {name: _shape(entry) for name, entry in node.parameters.items()},
        "buffers": {name: _shape(entry) for name, entry in node.buffers.items()},
        "children": [module_form(child, room) for child in node.children],
    }
    if node.source is not None and room.left > 0:
        room.left -= len(node.source)  # the same text stands at every module of a class
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
        "stride": list(item.entry.stride) if item.entry.layout == "strided" else None,
        "storage_offset": item.entry.storage_offset,
        "layout": item.entry.layout,
        "nbytes": item.entry.nbytes,
        "requires_grad": item.entry.requires_grad,
        "alias_of": item.alias_of,
        "device": item.entry.storage.device,
    }


def _problem(problem: FileProblem | None) -> dict[str, str] | None:
    if problem is None:
        return None
    return {"kind": type(problem).__name__, "text": problem.problem, "advice": problem.advice}


def _architecture(match: ArchitectureMatch) -> dict[str, Any]:
    return {
        "name": match.name,
        "score": match.score,
        "num_classes": match.num_classes,
        "input_channels": match.input_channels,
        "prefix": match.prefix,
        "is_part": match.is_part,
        "named_by": match.named_by or None,
        "missing": list(match.missing),
        "unexpected": list(match.unexpected),
        "mismatched": list(match.mismatched),
        "not_in_weights": list(NOT_IN_WEIGHTS),
    }


def finding_form(item: Finding) -> dict[str, str]:
    """Return a finding in JSON's terms."""
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
        "findings": [finding_form(finding) for finding in item.findings],
        "weights_only": item.weights_only,
        "weights_only_by_release": item.weights_only_by_release,
        "blocked": list(item.blocked),
    }
