"""Names that a safetensors file leaves out, since their tensor stands in it under another name.

The format refuses two names for one tensor. `safetensors.torch.save_model` and torchkeep store it
once, and record `dropped name: kept name` in `__metadata__`, among whatever else is there.
"""

from __future__ import annotations

from collections.abc import Container, Mapping


def tied_names(metadata: Mapping[str, str], names: Container[str]) -> dict[str, str]:
    """Return the names that were left out, each with the name that stands for it.

    >>> tied_names({"format": "pt", "head.weight": "emb.weight"}, {"emb.weight"})
    {'head.weight': 'emb.weight'}
    """
    return {
        dropped: kept
        for dropped, kept in metadata.items()
        if kept in names and dropped not in names
    }
