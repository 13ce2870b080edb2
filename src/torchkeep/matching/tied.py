"""Names that a safetensors file leaves out, since their tensor stands in it under another name.

The format refuses two names for one tensor. `safetensors.torch.save_model` and torchkeep store it
once, and record `dropped name: kept name` in `__metadata__`, among whatever else is there.
torchkeep's own files have a table of these names besides, which is then believed alone: a file's
metadata may hold a text that happens to be a tensor's name.
"""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.formats.own.metadata import TIED, stored_table


def tied_names(contents: Contents) -> dict[str, str]:
    """Return the names that were left out, each with the name that stands for it.

    Raises:
        DamagedFile: torchkeep's table of them is broken.
    """
    if contents.container not in ("safetensors", "safetensors-sharded"):
        return {}
    own = stored_table(contents, TIED)
    names = contents.root
    return {
        dropped: kept
        for dropped, kept in (contents.metadata if own is None else own).items()
        if kept in names and dropped not in names
    }
