"""What the readers share whose files are described, and not loaded.

Such a reader names a file with what its header says and lists the tensors whose types PyTorch has.
It loads none: names, axes and packing differ from ecosystem to ecosystem, and a model is more than
its tensors.
"""

from __future__ import annotations

from math import prod

from torchkeep.contents import ITEM_SIZE, Storage, TensorEntry, contiguous_stride
from torchkeep.errors import DamagedFile, NotAModelFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.cursor import ByteOrder
from torchkeep.wording import shortened

_MOST_DIMENSIONS = 64
_LONGEST_SHAPE = 12


def not_loaded(what: str) -> UnsupportedContent:
    """Return why no tensors can be had from a model of another ecosystem."""
    return UnsupportedContent(
        f"this is {what}, which torchkeep describes and does not load",
        advice="Ask whoever gave it to you for a PyTorch or safetensors file.",
    )


def no_model(what: str, advice: str = "Check the path.") -> NotAModelFile:
    """Return why no tensors can be had from something that is no model."""
    return NotAModelFile(f"this is {what}, not a model", advice=advice)


def tensor_at(
    file: Readable,
    key: str,
    dtype: str,
    shape: tuple[int, ...],
    offset: int | None,
    *,
    byteorder: ByteOrder = "little",
    fortran: bool = False,
) -> TensorEntry:
    """Return a tensor that lies in the file in one run.

    Args:
        file: what holds it.
        key: its name.
        dtype: PyTorch's name of the element type.
        shape: its sizes.
        offset: where its first byte is; None if it is packed.
        byteorder: that of its elements.
        fortran: whether its first index runs fastest.

    Raises:
        DamagedFile: its shape is none, or the file ends before it does.
    """
    check_shape(key, shape)
    nbytes = prod(shape) * ITEM_SIZE[dtype]
    if offset is not None and offset + nbytes > file.nbytes:
        raise DamagedFile(
            f"the file is truncated: tensor {shortened(key)!r} needs bytes {offset:,} to "
            f"{offset + nbytes:,}, and it ends at {file.nbytes:,}",
            advice="Copy or download it again.",
        )
    stride = contiguous_stride(shape, fortran=fortran)
    source = None if offset is None else file.source
    start = None if offset is None else file.start + offset
    return TensorEntry(
        dtype, shape, stride, Storage(key, nbytes, start, byteorder=byteorder, path=source)
    )


def check_shape(key: str, shape: tuple[int, ...]) -> None:
    """Raise `DamagedFile` unless a tensor can have this shape."""
    if len(shape) > _MOST_DIMENSIONS or prod(max(size, 1) for size in shape) >= 1 << 63:
        raise DamagedFile(
            f"tensor {shortened(key)!r} of {len(shape)} dimensions has more elements than can be"
        )
    if min(shape, default=0) < 0:
        raise DamagedFile(f"tensor {shortened(key)!r} has a negative size")


def shown_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as a person reads it: `[2, 3]`."""
    sizes = [str(size) for size in shape[:_LONGEST_SHAPE]]
    return f"[{', '.join(sizes)}{', ...' if len(shape) > _LONGEST_SHAPE else ''}]"
