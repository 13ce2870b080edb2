"""What a save did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torchkeep.wording import counted


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save did."""

    path: Path
    """The file that was written; of a model in several files its index."""
    nbytes: int
    """Its size, or that of all its files."""
    num_tensors: int
    """Tensors in it, tied ones counted once per name."""
    digests: dict[str, str] = field(default_factory=dict)
    """`files.digest` of each tensor's elements in C order, by name."""
    tied: dict[str, str] = field(default_factory=dict)
    """Names whose tensor is stored once, under the name given here (safetensors only)."""
    stripped: tuple[str, ...] = ()
    """Key components of wrappers that were dropped: `module`, `_orig_mod`, ..."""
    not_saved: tuple[str, ...] = ()
    """Non-persistent buffers of the module, which a state dict leaves out."""
    needs: tuple[str, ...] = ()
    """Of a whole model: the classes and functions, by dotted name, that `load_model` has to be
    given, since they are neither PyTorch's nor torchvision's nor timm's."""
    left_out: tuple[str, ...] = ()
    """Of a whole model: what is no data and is not in the file (hooks, locks), with its place."""
    files: tuple[Path, ...] = ()
    """The files of a model in several: the index, then those with tensors."""

    def __str__(self) -> str:
        text = f"{self.path}: {counted(self.num_tensors, 'tensor')}, {self.nbytes:,} bytes"
        if self.files:
            text += f" in {counted(len(self.files) - 1, 'file')}"
        if self.stripped:
            text += f"; dropped from the names: {', '.join(self.stripped)}"
        if self.not_saved:
            text += f"; not saved (non-persistent buffers): {', '.join(self.not_saved)}"
        if self.needs:
            text += f"; to be given when it is loaded: {', '.join(self.needs)}"
        if self.left_out:
            text += f"; not saved, being no data: {', '.join(self.left_out)}"
        return text
