"""A file's tensors, each made when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch

from torchkeep.contents import TensorEntry
from torchkeep.files import Scratch
from torchkeep.identify import Inspection, identify_whole
from torchkeep.identify.digests import stored_digests
from torchkeep.loading.devices import usable_device
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.tensors import TensorReader
from torchkeep.wording import counted


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of a model file by path, as a read-only mapping; see `torchkeep.open`.

    NumPy's arrays are among them, as tensors.

    A tensor is read when it is looked up, and not kept: looking it up again makes another one. Two
    that shared memory when they were saved do not share it here; `inspection.tensors()` tells.

    Attributes:
        inspection: what the file is and holds.
    """

    def __init__(
        self, inspection: Inspection, device: str | torch.device, *, mmap: bool, scratch: Scratch
    ) -> None:
        self.inspection = inspection
        self._scratch = scratch
        self._device = device
        self._mmap = mmap
        self._digests = stored_digests(inspection.contents)
        self._entries = {item.path: item.entry for item in inspection.tensors(arrays=True)}

    def entry(self, path: str) -> TensorEntry:
        """Return a tensor's description (dtype, shape, stride, place) without reading it.

        Raises:
            KeyError: there is none of this path.
        """
        return self._entries[path]

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The descriptions of all tensors by path, in the file's order."""
        return MappingProxyType(self._entries)

    def __getitem__(self, path: str) -> torch.Tensor:
        """Return the tensor, read now.

        Raises:
            KeyError: there is none of this path.
            DamagedFile: it can't be read, or differs from the digest in the file.
            UnsupportedContent: it is of a kind that can't be built.
        """
        entry = self._entries[path]
        with self._reader() as reader:
            return reader.materialize(entry, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _reader(self) -> TensorReader:
        contents = self.inspection.contents
        return TensorReader(
            contents.path,
            device=self._device,
            mmap=self._mmap,
            digests=self._digests,
            stamps=contents.stamps,
        )

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove what was unpacked; else nothing is held between two reads."""
        self._scratch.close()

    def __repr__(self) -> str:
        return f"<TensorFile {os.fspath(self.inspection.path)!r}: {counted(len(self), 'tensor')}>"


def open(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    mmap: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> TensorFile:
    """Return a file's tensors as a mapping from path to tensor, each read when it is looked up.

    Nothing in the file is run. It costs what `inspect` costs, and then what is looked up. A model
    that lies packed in an archive is unpacked into a temporary file, which is there until the
    `with` block ends, or the mapping goes.

    Args:
        path: a file of any readable kind, or a folder of shards or of a distributed checkpoint.
        device: where tensors are made, whatever they were saved from.
        mmap: map the file instead of reading it; see `TensorReader`.
        limits: bounds of the work that a file may cause.

    Raises:
        FileProblem: the file is missing, damaged, or of a kind that no tensor can be read from.
    """
    scratch = Scratch()
    inspection = identify_whole(path, limits, scratch)
    return TensorFile(inspection, usable_device(device), mmap=mmap, scratch=scratch)
