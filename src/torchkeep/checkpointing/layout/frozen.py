"""Which tensors of a state training leaves alone: the parameters that require no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchkeep.checkpointing.state.encoding import JSON
from torchkeep.tensors import identity


def frozen_tensors(tensors: Mapping[str, torch.Tensor], structure: JSON) -> set[str]:
    """Return the names of the frozen parameters of all modules, under all their names.

    Args:
        tensors: those of the state.
        structure: the state's, as `encode` returns it.
    """
    frozen = {
        name
        for state in _modules(structure.get("objects"))
        for key, needs_gradient in _table(state.get("requires_grad")).items()
        if needs_gradient is False
        for name in [_tensor_name(_table(state.get("state_dict")).get(key))]
        if name in tensors
    }
    if not frozen:
        return frozen
    # Of a parameter that has several names, only the first is said to be frozen.
    places = {identity(tensors[name]) for name in frozen}
    return {name for name, tensor in tensors.items() if identity(tensor) in places}


def _modules(nodes: JSON) -> Iterator[dict[str, Any]]:
    """Yield the states of the modules among captured objects (see `state.kinds.KINDS`)."""
    for node in _values(nodes):
        if not isinstance(node, dict):
            continue
        if node.get("kind") == "module":
            yield _table(node.get("state"))
        elif node.get("kind") == "items":
            yield from _modules(node.get("items"))


def _values(nodes: JSON) -> list[JSON]:
    """Return the values of a table, whether its keys are all texts or not."""
    table = _table(nodes)
    if "$" in table:
        return [item for _, item in table.get("items", [])]
    return list(table.values())


def _table(value: JSON) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tensor_name(node: JSON) -> str:
    return str(_table(node).get("name", ""))
