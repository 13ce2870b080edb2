"""Descriptions of files and models for the tests of matching, in a few words."""

from __future__ import annotations

from torchkeep.contents import Storage, TensorEntry, contiguous_stride
from torchkeep.matching.slots import Slot


def entry(*shape: int, dtype: str = "float32") -> TensorEntry:
    return TensorEntry(dtype, shape, contiguous_stride(shape), Storage("0", 0, 0))


def slot(*shape: int, dtype: str = "float32", **kwargs) -> Slot:
    return Slot(dtype, shape, **kwargs)


def file_of(**shapes: tuple[int, ...]) -> dict[str, TensorEntry]:
    return {key.replace("__", "."): entry(*shape) for key, shape in shapes.items()}


def model_of(dtype: str = "float32", **shapes: tuple[int, ...]) -> dict[str, Slot]:
    return {key.replace("__", "."): Slot(dtype, shape) for key, shape in shapes.items()}
