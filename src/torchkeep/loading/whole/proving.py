"""Proof that a rebuilt model is what the file says: every tensor, every flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchkeep.contents import Memory, Object, TensorEntry, Value, child_path
from torchkeep.errors import ProofFailed
from torchkeep.identify.modules import is_module, module_state
from torchkeep.loading.whole.parts import every_part
from torchkeep.tensors import TensorReader, identity, same_bits


def prove(root: Value, made: Mapping[int, Any], reader: TensorReader) -> None:
    """Compare a rebuilt model with the file.

    Args:
        root: the model in the file.
        made: what was made of each inert value, by its id.
        reader: reads the file's tensors.

    Raises:
        ProofFailed: a tensor, its `requires_grad`, what it is tied to, or a module's training flag
            is another; the message names it.
    """
    tied: dict[Memory, tuple[object, ...]] = {}
    for path, value in every_part(root):
        if is_module(value):
            _prove_module(value, made[id(value)], path, reader, tied)


def _prove_module(
    value: Object,
    module: torch.nn.Module,
    path: str,
    reader: TensorReader,
    tied: dict[Memory, tuple[object, ...]],
) -> None:
    state = module_state(value)
    if "training" in state and module.training is not state["training"]:
        raise _differs(path or "the model", "its training flag")
    for table, live in (("_parameters", module._parameters), ("_buffers", module._buffers)):
        for name, entry in state.get(table, {}).items():
            place = child_path(path, name)
            tensor = live.get(name)
            if not isinstance(entry, TensorEntry):
                if tensor is not None:
                    raise _differs(place, "it was None")
                continue
            if tensor is None or not _is_same(tensor, entry, place, reader):
                raise _differs(place, "its values")
            if tensor.requires_grad is not entry.requires_grad:
                raise _differs(place, "its requires_grad")
            place_of = (id(tensor),) if entry.is_composite else identity(tensor)
            if tied.setdefault(entry.memory, place_of) != place_of:
                raise _differs(place, "it was one tensor with another, and is on its own")


def _is_same(tensor: torch.Tensor, entry: TensorEntry, place: str, reader: TensorReader) -> bool:
    if not (entry.is_composite or entry.quantizer):
        return bool(reader.match(tensor, entry, place))
    other = reader.read(entry, place)
    return tensor.layout == other.layout and same_bits(_dense(tensor), _dense(other))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a sparse or a quantized tensor."""
    return tensor.int_repr() if tensor.is_quantized else tensor.detach().to_dense()


def _differs(place: str, what: str) -> ProofFailed:
    return ProofFailed(
        f"{place!r} differs from the file after it was rebuilt: {what}",
        advice="Its class changes what it is given; don't use it as loaded.",
    )
