"""Which format a path asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from torchkeep.errors import SaveRefused

SUFFIXES: dict[str, Literal["safetensors", "torch-zip"]] = {
    ".safetensors": "safetensors",
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin"), "torch-zip"),
}
"""The format that each suffix stands for, under its container's name."""


def format_of(path: str | os.PathLike[str]) -> Literal["safetensors", "torch-zip"]:
    """Return the format that a path's suffix chooses.

    Raises:
        SaveRefused: it chooses none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise SaveRefused(
            f"{os.fspath(path)}: the suffix {suffix!r} names no format",
            advice=f"Use one of {', '.join(SUFFIXES)}.",
        )
    return SUFFIXES[suffix]
