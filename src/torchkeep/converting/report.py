"""What a conversion did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchkeep.identify.json_form import SCHEMA, jsonable
from torchkeep.wording import counted, size


@dataclass(frozen=True, slots=True)
class Cast:
    """What a cast to another dtype cost."""

    dtype: str
    """The new dtype."""
    num_tensors: int
    """Tensors that were cast: the floating ones of other dtypes."""
    relative: float
    """The largest relative error of a tensor: the norm of its change by its norm."""
    worst: str
    """The tensor that has it; empty if nothing changed."""
    num_underflowed: int
    """Elements that became zero and were not."""
    num_overflowed: int
    """Elements beyond its range: they became infinite, or where it has no infinity its largest
    number."""

    def __str__(self) -> str:
        text = f"{counted(self.num_tensors, 'tensor')} cast to {self.dtype}"
        if self.worst:
            text += f", relative error at most {self.relative:.3g} (in {self.worst!r})"
        for number, words in (
            (self.num_underflowed, "became zero"),
            (self.num_overflowed, "overflowed"),
        ):
            text += f", {counted(number, 'element')} {words}" if number else ""
        return text


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did, and proved.

    Every tensor that was written was read back, and has the digest of the source's elements.
    """

    source: Path
    """The file that was read."""
    path: Path
    """The file that was written; of a sharded one, its index; of a distributed checkpoint, the
    folder."""
    container: str
    """The kind of file that was written: `safetensors`, `torch-zip`, `dcp`."""
    nbytes: int
    """Its size, that of all shards."""
    num_tensors: int
    """Tensors in it, tied ones counted once per name."""
    state_dict: str | None
    """The path in the source of the one state dict that was written; None for the whole tree."""
    why: str
    """Why that one, in a sentence; empty if all of the tree was written."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Keys of state dicts that have another name now, with that."""
    tied: dict[str, str] = field(default_factory=dict)
    """Names whose tensor is stored once, under the name given here (safetensors only)."""
    cast: Cast | None = None
    """What a cast cost, if there was one."""
    in_metadata: tuple[str, ...] = ()
    """Paths of plain values that stand in the metadata now."""
    left_out: tuple[str, ...] = ()
    """What of the source is not in the file that was written."""
    notes: tuple[str, ...] = ()
    """What is in it in another form, a sentence each."""
    shards: tuple[Path, ...] = ()
    """The files that the tensors are in, if there are several."""

    def __str__(self) -> str:
        text = f"{self.path}: {counted(self.num_tensors, 'tensor')}, {size(self.nbytes)}"
        return f"{text}; {self.cast}" if self.cast else f"{text}, each as in {self.source}"

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md) as plain dicts and lists."""
        return {
            "schema": SCHEMA,
            "source": str(self.source),
            "path": str(self.path),
            "container": self.container,
            "nbytes": self.nbytes,
            "num_tensors": self.num_tensors,
            "state_dict": self.state_dict,
            "why": self.why,
            "renamed": dict(self.renamed),
            "tied": dict(self.tied),
            "cast": None if self.cast is None else _cast_form(self.cast),
            "in_metadata": list(self.in_metadata),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "shards": [str(path) for path in self.shards],
        }


def _cast_form(cast: Cast) -> dict[str, Any]:
    return {
        "dtype": cast.dtype,
        "num_tensors": cast.num_tensors,
        "relative": jsonable(cast.relative),
        "worst": cast.worst,
        "num_underflowed": cast.num_underflowed,
        "num_overflowed": cast.num_overflowed,
    }
