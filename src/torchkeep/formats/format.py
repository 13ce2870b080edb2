"""What a file format is to torchkeep: a name, a way to recognise it, a way to describe it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, overload

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


def imported(place: str) -> Any:
    """Return what a text such as `torch.zip:describe` names in this package."""
    module, _, name = place.partition(":")
    return getattr(import_module(f"torchkeep.formats.{module}"), name)


class Lazily(Sequence[Format]):
    """Formats whose modules are imported when their turn comes.

    Most files are of one of the first, and importing the others takes longer than to read the file.
    """

    def __init__(self, *places: str) -> None:
        self._places = places

    @overload
    def __getitem__(self, index: int) -> Format: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Format]: ...
    def __getitem__(self, index: int | slice) -> Format | Sequence[Format]:
        if isinstance(index, slice):
            return Lazily(*self._places[index])
        found: Format = imported(self._places[index])
        return found

    def __iter__(self) -> Iterator[Format]:
        return map(imported, self._places)

    def __len__(self) -> int:
        return len(self._places)
