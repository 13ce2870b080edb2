"""matching/adaptations.py: each does what it says, and only where it makes sense."""

from __future__ import annotations

import pytest
import torch

from torchkeep.contents import Storage, TensorEntry
from torchkeep.matching.adaptations import ADAPTATIONS
from torchkeep.matching.slots import Slot


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ("float32", "bfloat16", True),
        ("float16", "float64", True),
        ("float8_e4m3fn", "float32", True),
        ("uint8", "int64", True),
        ("complex64", "complex128", True),
        ("float32", "int32", False),
        ("int32", "float32", False),
        ("bool", "uint8", False),
        ("complex64", "float32", False),
    ],
)
def test_a_cast_stays_within_one_kind_of_number(source: str, target: str, fits: bool) -> None:
    entry = TensorEntry(source, (2,), (1,), Storage("0", 0, 0))
    assert ADAPTATIONS["cast"].fits(entry, Slot(target, (2,))) is fits
    assert not ADAPTATIONS["cast"].fits(entry, Slot(target, (3,)))


def test_a_cast_gives_the_dtype_of_the_models_tensor() -> None:
    apply = ADAPTATIONS["cast"].apply
    assert apply is not None
    made = apply(torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.float16))
    assert made.dtype == torch.float16
    assert made.tolist() == [1, 2]


def test_each_adaptation_says_what_it_does() -> None:
    assert all(item.name == name and item.what for name, item in ADAPTATIONS.items())
    assert ADAPTATIONS["skip"].apply is None
