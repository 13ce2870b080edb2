"""What the installed release of PyTorch has that another supported one lacks."""

from __future__ import annotations

import torch

from torchkeep.contents import ITEM_SIZE

INSTALLED = tuple(int(number) for number in torch.__version__.split(".")[:2])

_SINCE = {"bcomplex32": (2, 14)}
"""The release that brought a dtype, where the oldest supported one has not got it."""

DTYPES = [
    name
    for name in ITEM_SIZE
    if not name.startswith("q") and _SINCE.get(name, INSTALLED) <= INSTALLED
]
"""The names of the dtypes, but for the quantized ones."""
