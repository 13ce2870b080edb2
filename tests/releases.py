"""What the installed releases of PyTorch and Python have that other supported ones lack."""

from __future__ import annotations

import sys

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

TOO_DEEP = 970 if sys.version_info >= (3, 12) else 600
"""A nesting that Python's JSON reader takes, and a walk does not: once a level took two frames."""
