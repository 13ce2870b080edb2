"""Tensors of another dtype: the one part of a conversion that needs torch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from torchkeep.comparing.numbers import FLOATS, Sums, has_torch, tensor_of
from torchkeep.contents import ITEM_SIZE
from torchkeep.converting.report import Cast
from torchkeep.errors import MissingExtra, SaveRefused, WrongArgument
from torchkeep.files import Buffer
from torchkeep.writing.payload import Payload

BLOCK_ELEMENTS = 1 << 18
"""Elements that are cast in one go."""


class Caster:
    """Casts floating tensors block by block, and knows what that cost.

    Args:
        dtype: the new dtype, a floating one.
        allow_overflow: whether a finite number may become infinite.

    Raises:
        WrongArgument: PyTorch has no such floating dtype.
        MissingExtra: PyTorch is not installed.
    """

    def __init__(self, dtype: str, *, allow_overflow: bool) -> None:
        if dtype not in FLOATS:
            raise WrongArgument(
                f"dtype {dtype!r} is no floating dtype", advice=f"Use one of {', '.join(_NAMED)}."
            )
        if not has_torch():
            raise MissingExtra.for_modules(f"casting to {dtype}", ["torch"], "torch")
        self.dtype = dtype
        self._allow_overflow = allow_overflow
        self._costs: dict[str, tuple[float, int, int]] = {}
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def casts(self, dtype: str) -> bool:
        """Whether tensors of a dtype are cast."""
        return dtype in FLOATS and dtype != self.dtype

    def payload(self, blocks: Payload, dtype: str, name: str) -> Payload:
        """Return a tensor's elements in the new dtype.

        Args:
            blocks: its elements.
            dtype: its dtype, one that `casts`.
            name: what to call it in an error.
        """
        self._names.add(name)
        size, new_size = ITEM_SIZE[dtype], ITEM_SIZE[self.dtype]
        nbytes = blocks.nbytes // size * new_size

        def read(begin: int, end: int) -> Iterator[Buffer]:
            position = 0
            runs = blocks.read(0, blocks.nbytes)
            for block in self._cast(_of_elements(runs, size), dtype, name):
                yield block[max(begin - position, 0) : max(end - position, 0)]
                position += len(block)

        return Payload(nbytes, read)

    def _cast(self, blocks: Iterable[Buffer], dtype: str, name: str) -> Iterator[memoryview]:
        import torch

        kind: Any = getattr(torch, self.dtype)
        limits, sums, under, over = torch.finfo(kind), Sums(), 0, 0
        beyond = limits.max * (1 + limits.eps / 4)  # what is nearer is rounded
        for block in blocks:
            old = tensor_of(block, dtype)
            new = old.to(kind)
            sums.add(old, new)
            old, seen = old.double(), new.double()
            under += int(((seen == 0) & (old != 0)).sum())
            # Some dtypes have no infinity: what is too large for them becomes the largest number.
            clipped = seen.isfinite() & (old.abs() > beyond)
            over += int(((old.isfinite() != seen.isfinite()) | clipped).sum())
            if over and not self._allow_overflow:
                raise SaveRefused(
                    f"tensor {name!r} has numbers as large as {float(old.abs().max()):.3g}, which "
                    f"overflow in {self.dtype}",
                    advice="Choose another dtype (bfloat16 has the range of float32), or allow it "
                    "with allow_overflow=True (--allow-overflow).",
                )
            yield memoryview(_bytes(new))
        with self._lock:
            self._costs[name] = sums.change().relative, under, over

    def cost(self) -> Cast:
        """Return what the casts cost, after they were made."""
        worst = max(self._costs, key=lambda name: self._costs[name][0], default="")
        relative = self._costs[worst][0] if worst else 0.0
        return Cast(
            dtype=self.dtype,
            num_tensors=len(self._names),
            relative=relative,
            worst=worst if relative else "",
            num_underflowed=sum(under for _, under, _ in self._costs.values()),
            num_overflowed=sum(over for _, _, over in self._costs.values()),
        )


_NAMED = ("float16", "bfloat16", "float32", "float64")
"""Those that people mean, of the floating dtypes."""


def _of_elements(runs: Iterable[Buffer], size: int) -> Iterator[Buffer]:
    """Yield the same bytes in pieces of whole elements, not too many at once."""
    rest = b""
    for run in runs:
        view = memoryview(rest + bytes(run) if rest else run)
        usable = len(view) // size * size
        for start in range(0, usable, BLOCK_ELEMENTS * size):
            yield view[start : min(start + BLOCK_ELEMENTS * size, usable)]
        rest = bytes(view[usable:])


def _bytes(tensor: Any) -> bytes:
    """Return a contiguous tensor's elements; NumPy may be missing."""
    from torchkeep.tensors import bytes_of

    return bytes(bytes_of(tensor))
