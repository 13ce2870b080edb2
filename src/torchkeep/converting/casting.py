"""Tensors of another dtype: the one part of a conversion that needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torchkeep.comparing.numbers import BLOCK_ELEMENTS, FLOATS, Sums, has_torch, tensor_of
from torchkeep.contents import ITEM_SIZE
from torchkeep.converting.report import Cast
from torchkeep.errors import MissingExtra, SaveRefused, WrongArgument
from torchkeep.files import Buffer
from torchkeep.writing.payload import Payload

if TYPE_CHECKING:
    import torch


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
        self._costs: dict[str, _Cost] = {}
        self._names: set[str] = set()

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
        if name in self._costs:  # it is read once more, to prove what was written
            yield from (_bytes(tensor_of(block, dtype).to(kind)) for block in blocks)
            return
        cost = _Cost(torch.finfo(kind))
        for block in blocks:
            old = tensor_of(block, dtype)
            new = old.to(kind)
            cost.add(old, new)
            if cost.num_overflowed and not self._allow_overflow:
                raise SaveRefused(
                    f"tensor {name!r} has numbers as large as {cost.largest:.3g}, which overflow "
                    f"in {self.dtype}",
                    advice="Choose another dtype (bfloat16 has the range of float32), or allow it "
                    "with allow_overflow=True (--allow-overflow).",
                )
            yield _bytes(new)
        self._costs[name] = cost

    def cost(self) -> Cast:
        """Return what the casts cost, after they were made."""
        relatives = {name: cost.sums.change().relative for name, cost in self._costs.items()}
        worst = max(relatives, key=lambda name: relatives[name], default="")
        relative = relatives.get(worst, 0.0)
        return Cast(
            dtype=self.dtype,
            num_tensors=len(self._names),
            relative=relative,
            worst=worst if relative else "",
            num_underflowed=sum(cost.num_underflowed for cost in self._costs.values()),
            num_overflowed=sum(cost.num_overflowed for cost in self._costs.values()),
        )


class _Cost:
    """What the blocks of a tensor lose."""

    def __init__(self, limits: torch.finfo) -> None:
        self.sums = Sums()
        self.num_underflowed = self.num_overflowed = 0
        self.largest = 0.0
        # Some dtypes have no infinity: what is too large for them becomes their largest number.
        # Beyond it by less than half a step, that is what it is rounded to.
        self._beyond = limits.max * (1 + limits.eps / 4)

    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        self.sums.add(old, new)
        old, new = old.double(), new.double()
        self.num_underflowed += int(((new == 0) & (old != 0)).sum())
        clipped = new.isfinite() & (old.abs() > self._beyond)
        over = (old.isfinite() != new.isfinite()) | clipped
        if over.any():
            self.num_overflowed += int(over.sum())
            self.largest = max(self.largest, float(old[over].abs().max()))


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


def _bytes(tensor: torch.Tensor) -> memoryview:
    from torchkeep.tensors import bytes_of

    return bytes_of(tensor)
