"""Live trees to torch zips; `writing.torch_zip` writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torchkeep.files import Progress
from torchkeep.saving.trees import StoredTree, Tree
from torchkeep.writing.report import SaveReport
from torchkeep.writing.torch_zip import write_torch_zip as write_entries


def write_torch_zip(
    tree: Tree,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    device: str | None = None,
    durable: bool = True,
    overwrite: bool = False,
    background: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Write a tree of tensors and plain values; the file appears whole or not at all.

    Python attributes of a tensor and its hooks are not stored.

    Args:
        tree: dicts, lists, tuples and sets of tensors, numbers, texts and bytes.
        path: the file.
        metadata: texts for the record `torchkeep.json`. The tensors' digests are added.
        device: where the file says that its tensors were, which is where plain `torch.load` puts
            them; None for where they are.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.
        background: take as little of the processors as can be, for somebody else computes.
        progress: is called with the bytes that are written and of all, as they are written.

    Raises:
        SaveRefused: a value can't be stored (its path is named), or the place can't be written to.
            An old file is intact.
    """
    stored = StoredTree(tree, device)
    return write_entries(
        stored.root,
        stored.live.payload_of,
        path,
        metadata=metadata,
        elements_of=stored.live.elements_of,
        durable=durable,
        overwrite=overwrite,
        background=background,
        progress=progress,
    )
