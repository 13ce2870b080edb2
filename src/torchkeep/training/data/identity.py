"""What tells the data of a run from other data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchkeep.files import digest_of_pieces
from torchkeep.training.data.preprocessing import Preprocessing
from torchkeep.training.data.samples import Samples, files_of, labels_of, length_of
from torchkeep.training.data.sources import Data


def identity_of(data: Data, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what has to be the same where a run is gone on with, as JSON has it."""
    return {
        "source": data.source,
        "classes": list(data.classes),
        "num_train": length_of(data.train),
        "num_val": length_of(data.val),
        "files_and_labels": digest_of(data),
        "preprocessing": preprocessing.to_json(),
    }


def digest_of(data: Data) -> str:
    """Return a digest of the data's samples in their order: of training, then of validation.

    Of an image file it takes the name below `data.source`, the label, and the size in bytes, so
    that it costs a look at each and no reading; another image of the same name and size is not
    noticed. Of other samples it takes the labels, which are read if no list tells them.
    """
    return digest_of_pieces(
        piece for part in (data.train, data.val) for piece in (*_pieces(part, data.source), b"\0")
    )


def _pieces(samples: Samples, source: str) -> Iterator[bytes]:
    if files := files_of(samples):
        for path, label in files:
            name = path.relative_to(source) if path.is_relative_to(source) else path
            yield os.fsencode(f"{name.as_posix()}\0{label} {_size(path)}\n")
        return
    yield str(labels_of(samples)).encode()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a link to nothing, say: whoever reads it is told
