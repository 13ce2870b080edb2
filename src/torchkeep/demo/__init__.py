"""The whole life of a small model, with a proof at each step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from torchkeep.demo.digits import Settings
    from torchkeep.demo.proofs import Proof


def run(
    out: str | os.PathLike[str],
    *,
    console: Console | None = None,
    settings: Settings | None = None,
) -> tuple[Proof, ...]:
    """Train, kill, resume, inspect, load and retrain a small network; return what was proven.

    Args:
        out: the folder for everything that is written. It is made; an earlier demo's is replaced.
        console: what to print on; by default standard output.
        settings: how large the demo is.

    Raises:
        SaveRefused: `out` holds something that no demo wrote.
        ProofFailed: a claim is not true, or a child process failed.
    """
    # Imported here, so that a child which only inspects files does not load PyTorch.
    from torchkeep.demo.story import tell

    return tell(out, console=console, settings=settings)


__all__ = ["run"]
