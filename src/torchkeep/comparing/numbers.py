"""How far two tensors are apart: the one part of a comparison that needs torch.

The elements come in blocks and are summed up in float64, so that memory stays that of a block
whatever the tensors' sizes. Every floating dtype up to float64 converts to it without loss;
integers are compared as such, those of 64 bits too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torchkeep.comparing.difference import Change

if TYPE_CHECKING:
    import torch

    from torchkeep.files import Buffer

BLOCK_ELEMENTS = 1 << 15
"""Elements whose numbers are computed in one go: they stay in the processor's cache, and PyTorch
starts no threads for so few, which would cost more than they gain."""
_QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
FLOATS = frozenset(
    "float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu".split()
)
"""The dtypes of floating numbers that PyTorch converts to one another."""
_PARTS = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
_INTEGERS = frozenset("bool uint8 int8 uint16 int16 uint32 int32 uint64 int64".split())
_SIGN = -(1 << 63)


def has_torch() -> bool:
    """Whether PyTorch can be imported here."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def has_numbers(dtype: str) -> bool:
    """Whether the elements of a dtype are numbers of at least a byte."""
    return dtype in FLOATS or dtype in _PARTS or dtype in _INTEGERS or dtype in _QUANTIZED


def change_between(a: Iterable[Buffer], a_dtype: str, b: Iterable[Buffer], b_dtype: str) -> Change:
    """Return how far two tensors are apart.

    Args:
        a: the first one's elements, little-endian, in blocks.
        a_dtype: its dtype, one that `has_numbers`.
        b: the second one's elements, in blocks of as many elements as the first one's.
        b_dtype: its dtype.
    """
    a_dtype, b_dtype = _QUANTIZED.get(a_dtype, a_dtype), _QUANTIZED.get(b_dtype, b_dtype)
    is_exact = {a_dtype, b_dtype} <= _INTEGERS and (
        a_dtype == b_dtype or "uint64" not in (a_dtype, b_dtype)
    )
    sums: Sums = _IntegerSums(a_dtype) if is_exact else Sums()
    for one, two in zip(a, b, strict=True):
        sums.add(tensor_of(one, a_dtype), tensor_of(two, b_dtype))
    return sums.change()


class _Norm:
    """A Euclidean norm of numbers that come in pieces; what overflows is the norm itself."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, numbers: torch.Tensor) -> None:
        import torch

        largest = _largest(numbers)
        if not largest or not math.isfinite(largest):
            self.value = max(self.value, largest)
            return
        # Squares of what is very large or very small leave the range of float64.
        unit = 1.0 if 1e-100 < largest < 1e100 else largest
        # No dot product: the threads of BLAS wait for each other by spinning.
        norm = float(torch.linalg.vector_norm(numbers / unit if unit != 1 else numbers))
        self.value = math.hypot(self.value, unit * norm)


class Sums:
    """What is known of two tensors after some of their blocks."""

    def __init__(self) -> None:
        self.difference = _Norm()
        self.first = _Norm()
        self.largest: float = 0
        self.num_changed = 0
        self.num_elements = 0
        self.num_nan = [0, 0]
        self.num_inf = [0, 0]

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add a block; of complex numbers, each row has the two parts of one."""
        a, b = a.double(), b.double()
        if a.dim() != b.dim():  # a real tensor beside a complex one
            a, b = _as_complex(a), _as_complex(b)
        change = b - a
        self.num_elements += len(a)
        if change.isfinite().all():  # so that both are, and equal where it is zero
            self.num_changed += int(_any(change != 0).sum())
        else:
            change, a = self._finite(change, a, b)
        self.difference.add(change)
        self.first.add(a)
        modulus = change if change.dim() == 1 else change[:, 0].hypot(change[:, 1])
        self.largest = max(self.largest, _largest(modulus))

    def _finite(
        self, change: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count what is not finite, and return the change and `a` with zeros in its place."""
        self.num_changed += int(_any((a != b) & ~(a.isnan() & b.isnan())).sum())
        for place, one in enumerate((a, b)):
            self.num_nan[place] += int(_any(one.isnan()).sum())
            self.num_inf[place] += int(_any(one.isinf()).sum())
        other = _any(~(a.isfinite() & b.isfinite()))
        other = other if a.dim() == 1 else other.unsqueeze(1)
        return change.masked_fill(other, 0), a.masked_fill(other, 0)

    def change(self) -> Change:
        """Return how far apart the blocks are."""
        norm, first = self.difference.value, self.first.value
        relative = norm / first if first else (math.inf if norm else 0.0)
        return Change(
            norm=norm,
            relative=relative,
            largest=self.largest,
            num_changed=self.num_changed,
            num_elements=self.num_elements,
            num_nan=(self.num_nan[0], self.num_nan[1]),
            num_inf=(self.num_inf[0], self.num_inf[1]),
        )


class _IntegerSums(Sums):
    """The same of integers, exactly."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.is_uint64 = dtype == "uint64"

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        import torch

        one, two = self.ordered(a), self.ordered(b)
        self.num_changed += int((one != two).sum())
        self.num_elements += len(a)
        # The larger minus the smaller, modulo 2**64; it may need all of the 64 bits.
        distance = one.maximum(two) - one.minimum(two)
        self.difference.add(distance.view(torch.uint64).double())
        self.first.add(a.double())
        if len(a):
            self.largest = max(self.largest, int((distance ^ _SIGN).max()) - _SIGN)

    def ordered(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return signed integers in the order of these, as far apart as they are."""
        import torch

        return numbers.view(torch.int64) ^ _SIGN if self.is_uint64 else numbers.to(torch.int64)


def tensor_of(block: Buffer, dtype: str) -> torch.Tensor:
    """Return a block's elements as they are; of complex ones, the parts."""
    import torch

    kind: Any = getattr(torch, "uint8" if dtype == "bool" else _PARTS.get(dtype, dtype))
    numbers = torch.frombuffer(bytearray(block), dtype=kind)
    return numbers.view(-1, 2) if dtype in _PARTS else numbers


def _largest(numbers: torch.Tensor) -> float:
    """Return the largest absolute value; 0 if there are no numbers."""
    return float(numbers.abs().max()) if numbers.numel() else 0.0


def _any(truths: torch.Tensor) -> torch.Tensor:
    """Return what holds of each element: of a complex one, what holds of a part."""
    return truths if truths.dim() == 1 else truths.any(dim=1)


def _as_complex(numbers: torch.Tensor) -> torch.Tensor:
    import torch

    return numbers if numbers.dim() == 2 else torch.stack([numbers, numbers * 0], dim=1)
