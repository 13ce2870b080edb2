"""Which images are kept for validation, where nobody has said it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from torchkeep.errors import WrongArgument


def split(
    names: Sequence[str], labels: Sequence[int], share: float, *, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Return the positions of what is for training, and of what is for validation.

    It goes by the names alone, class by class: the same names are split alike on every machine, and
    an image that is added or removed moves at most one other of its class.

    Args:
        names: a name of each sample that stays its own, such as its path in the data's folder.
        labels: its label.
        share: how much of each class is for validation, from 0 to 1; at least one sample of each
            class that has two.
        seed: another seed, another split.

    Raises:
        WrongArgument: the share is no share, or a class has too few samples.
    """
    if not 0 < share < 1:
        raise WrongArgument(
            f"the share for validation is {share}", advice="Give one between 0 and 1, such as 0.2."
        )
    of_class: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        of_class[label].append(position)
    validation: set[int] = set()
    for positions in of_class.values():
        if len(positions) > 1:
            count = min(max(round(share * len(positions)), 1), len(positions) - 1)
            validation.update(sorted(positions, key=lambda at: _rank(names[at], seed))[:count])
    if not validation:
        raise WrongArgument(
            "no class has two images, so that none can be kept for validation",
            advice="Add images, or make folders train/ and val/ yourself.",
        )
    everything = range(len(names))
    return [at for at in everything if at not in validation], sorted(validation)


def _rank(name: str, seed: int) -> bytes:
    data = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(data).digest()
