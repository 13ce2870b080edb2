"""Files that the checkpoint before has already: they get a second name instead of being written.

Such a name is a hard link. It costs nothing, and the bytes stay until the last name is removed, so
any checkpoint can be pruned. But they are there only once: damage to them is damage to all that
share them. So a file is compared with its digest whenever another checkpoint wants to share it, and
a rotten one is not shared any further.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.reading_back import damage_in
from torchkeep.errors import FileProblem
from torchkeep.files import digest, link_file, remove_files
from torchkeep.formats.own.manifest import read_manifest
from torchkeep.tensors import bytes_of, plain_on_cpu
from torchkeep.writing.safetensors import Layout

_LEAST_NBYTES = 1 << 20
"""Smaller files are written: that takes less than to find out."""


class Earlier:
    """The checkpoint before a new one.

    Args:
        folder: where it is; None if there is none.
        manifest: its manifest, if that is known.

    Attributes:
        manifest: its manifest; without files if it has none that could be shared.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder or "")
        self.manifest: Mapping[str, Any] = manifest or {"files": {}}
        try:
            if folder is not None and manifest is None:
                self.manifest = read_manifest(folder)
        except FileProblem:  # whoever looks for damage will name it
            pass

    def share(
        self,
        name: str,
        layout: Callable[[], Layout],
        are_digests: Callable[[Mapping[str, str]], bool],
        target: Path,
        *,
        durable: bool,
    ) -> bool:
        """Give a file a second name if it is what would be written there.

        Args:
            name: the file.
            layout: returns the new file, laid out.
            are_digests: whether these are the digests of the tensors that it is to hold.
            target: the new name.
            durable: sync it.

        Returns:
            False if nothing was done: the file is another one, or is not whole, or can't be linked.
        """
        known = self.manifest["files"].get(name)
        if known is None or known["nbytes"] < _LEAST_NBYTES:
            return False
        digests = self.manifest["tensors"][name]
        if not are_digests(digests):
            return False
        if not link_file(self.folder / name, target, durable=durable):
            return False
        # What was linked is looked at, and not what has the name now.
        new = layout()
        header = new.header({key: digests[key] for key in new.names})
        if digest(header) == known["digest"] and not damage_in(target, known, digests):
            return True
        remove_files([target], durable=False)
        return False


def has_digests(tensors: Mapping[str, torch.Tensor], digests: Mapping[str, str]) -> bool:
    """Whether these are the digests of the tensors' bytes; the first that differs ends it."""
    if tensors.keys() != digests.keys():
        return False
    # What training changes, it changes all over: a small tensor tells as well as a large one.
    by_size = sorted(tensors, key=lambda name: tensors[name].numel())
    return all(digest(bytes_of(plain_on_cpu(tensors[name]))) == digests[name] for name in by_size)
