"""What a file format is to torchkeep: a name, a way to recognise it, a way to describe it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchkeep.contents import Contents
from torchkeep.files import Readable
from torchkeep.pickles.limits import Limits

HEAD_NBYTES = 512
"""How much of a file's start `sniff` gets to see."""


@dataclass(frozen=True, slots=True)
class Format:
    """One readable format.

    Attributes:
        name: the container's name in reports, such as `torch-zip`.
        sniff: whether a file that starts with these bytes (up to `HEAD_NBYTES`) and has this
            size is meant to be of the format. It may be wrong about damaged files.
        describe: what the file holds; raises `FileProblem` if it is not what it seemed.
    """

    name: str
    sniff: Callable[[bytes, int], bool]
    describe: Callable[[Readable, Limits], Contents]
