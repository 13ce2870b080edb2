"""The calls that make tensors of other layouts from plain ones: what `torch.save` writes of them.

`formats/torch/layouts.py` reads them. Sources are the same: torch/_tensor.py (`__reduce_ex__`) and
torch/_utils.py.
"""

from __future__ import annotations

from torchkeep.contents import Global, Object, TensorEntry
from torchkeep.errors import SaveRefused

_LAYOUT = Global("torch.serialization", "_get_layout")
_SPARSE = Global("torch._utils", "_rebuild_sparse_tensor")
_SIZE = Global("torch", "Size")
_NESTED = Global("torch._utils", "_rebuild_nested_tensor")
_NUM_NESTED = 4
"""Values, sizes, strides and offsets."""


def recipe(entry: TensorEntry, path: str) -> Object:
    """Return the call that makes a tensor that has no storage of its own.

    Raises:
        SaveRefused: it is of a class of its own, jagged, or spread over the shards of a checkpoint.
    """
    parts = [part for _, part in entry.parts]
    if entry.layout.startswith("sparse_") and parts:
        layout = Object(_LAYOUT, (f"torch.{entry.layout}",))
        told = () if entry.is_coalesced is None else (entry.is_coalesced,)
        return Object(_SPARSE, (layout, (*parts, Object(_SIZE, (entry.shape,)), *told)))
    if entry.layout == "nested" and len(parts) == _NUM_NESTED:
        return Object(_NESTED, tuple(parts))
    kind = "spread over several files" if entry.chunks else f"a {entry.class_path or entry.layout}"
    raise SaveRefused(
        f"tensor {path!r} is {kind}, which can't be stored as it is",
        advice="Load it, and save a plain tensor made from it.",
    )
