"""The parts of a state's structure, of which each rank may have one of its own.

A part is an object, or another entry of the state: `objects/model`, `rng`. Those that are the same
on all ranks stand once in the manifest, and the others also in the files of their ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchkeep.checkpointing.state.encoding import JSON

_OBJECTS = "objects"


def nodes_of(structure: JSON) -> dict[str, JSON]:
    """Return the parts of a structure by name."""
    nodes: dict[str, JSON] = {}
    for name, part in structure.items():
        if name == _OBJECTS and "$" not in part:
            nodes |= {f"{_OBJECTS}/{key}": node for key, node in part.items()}
        else:
            nodes[name] = part
    return nodes


def with_nodes(structure: JSON, nodes: Mapping[str, JSON]) -> JSON:
    """Return a structure with other parts in place of its own."""
    objects = {
        name.removeprefix(f"{_OBJECTS}/"): node
        for name, node in nodes.items()
        if name.startswith(f"{_OBJECTS}/")
    }
    rest = {name: node for name, node in nodes.items() if not name.startswith(f"{_OBJECTS}/")}
    changed: dict[str, Any] = {**structure, **rest}
    if objects:
        changed[_OBJECTS] = {**structure[_OBJECTS], **objects}
    return changed


def tensors_in(node: JSON) -> Iterator[str]:
    """Yield the names of the tensors that a part refers to."""
    if isinstance(node, list):
        for item in node:
            yield from tensors_in(item)
    elif isinstance(node, dict):
        if node.get("$") in ("tensor", "numpy"):
            yield node["name"]
        for item in node.values():
            yield from tensors_in(item)
