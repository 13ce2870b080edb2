"""Two model files side by side: which tensors and values they share, and how far others are apart.

Shapes, dtypes and bytes are compared without torch; only the numbers of a change need it.
"""

from __future__ import annotations

import os
from pathlib import Path

from torchkeep.comparing.difference import (
    Change,
    Difference,
    Form,
    PartDifference,
    TensorDifference,
    ValueDifference,
)
from torchkeep.comparing.numbers import has_torch
from torchkeep.comparing.parts import pair_parts
from torchkeep.comparing.tensors import Comparison
from torchkeep.files import Progress, Scratch
from torchkeep.identify import identify_whole
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    select: str = "auto",
    select_b: str | None = None,
    verify: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Difference:
    """Return what two model files have in common and what not.

    Each may be anything that `inspect` reads. Compared are the model's state dict of each, whatever
    it is called, the other state dicts of equal names, the optimizers, and the plain values and
    metadata, as far as both files have them; when and by which versions a file was saved is left
    aside. What one file has and the other has no counterpart of, such as an optimizer beside a bare
    state dict, is named and counts for nothing. Tensors are compared by name, without what wrappers
    put into it, and bit for bit; nothing in the files runs.

    Memory stays near a few blocks, or near a tensor that does not lie in one run. PyTorch is needed
    only for how far changed tensors are apart; without it that is left out.

    Args:
        a: the first file.
        b: the second file.
        select: `auto` compares all that both have; else only the one state dict of this name (as
            `load_into` takes it; `ema` is the moving average) is compared.
        select_b: the same for B, where its name there is another one.
        verify: read the tensors also where both files carry their digests, and these agree.
        limits: bounds of the work that each file may cause.
        progress: is told the bytes read and the bytes there are to read.

    Raises:
        FileProblem: a file is missing, damaged (a tensor that differs from its digest is named),
            or of no readable kind.
        LoadMismatch: it is not clear which state dict is meant, or only one file has one.
    """
    with Scratch() as scratch:
        one, two = (identify_whole(path, limits, scratch) for path in (a, b))
        pairing = pair_parts(one, two, select, select_b or select)
        with Comparison(one.contents, two.contents, verify=verify, progress=progress) as comparison:
            comparison.plan(pairing.pairs)
            parts = tuple(comparison.compare(*pair) for pair in pairing.pairs)
    return Difference(
        a=Path(a),
        b=Path(b),
        parts=parts,
        left_out_a=tuple(map(str, pairing.left_out_a)),
        left_out_b=tuple(map(str, pairing.left_out_b)),
        has_numbers=has_torch(),
    )


__all__ = [
    "Change",
    "Difference",
    "Form",
    "PartDifference",
    "TensorDifference",
    "ValueDifference",
    "diff",
]
