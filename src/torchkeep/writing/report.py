"""What a save did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torchkeep.wording import counted


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save did."""

    path: Path
    """The file that was written."""
    nbytes: int
    """Its size."""
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

    def __str__(self) -> str:
        text = f"{self.path}: {counted(self.num_tensors, 'tensor')}, {self.nbytes:,} bytes"
        if self.stripped:
            text += f"; dropped from the names: {', '.join(self.stripped)}"
        if self.not_saved:
            text += f"; not saved (non-persistent buffers): {', '.join(self.not_saved)}"
        return text
