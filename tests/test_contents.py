"""What is told of a tensor, an array and a finding, without their bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.contents import (
    ITEM_SIZE,
    Array,
    Chunk,
    DictObject,
    Finding,
    Global,
    Object,
    Storage,
    TensorEntry,
    attributes_of,
    contiguous_stride,
)

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
STORAGE = Storage("0", 96, 0)


def entry(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> TensorEntry:
    return TensorEntry("float32", shape, stride, STORAGE, offset)


@given(SHAPES)
def test_contiguous_strides_are_those_of_torch(shape: tuple[int, ...]) -> None:
    assert contiguous_stride(shape) == torch.empty(shape).stride()


@given(st.lists(st.integers(1, 5), max_size=4).map(tuple))
def test_fortran_strides_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    made = np.empty(shape, dtype="u1", order="F")
    assert contiguous_stride(shape, fortran=True) == made.strides


@pytest.mark.parametrize("name", [name for name in ITEM_SIZE if hasattr(torch, name)])
def test_an_item_has_the_size_that_torch_gives_it(name: str) -> None:
    assert ITEM_SIZE[name] == getattr(torch, name).itemsize


@given(SHAPES, st.integers(0, 3), st.permutations(range(4)))
def test_a_view_is_contiguous_and_needs_memory_as_torch_says(
    shape: tuple[int, ...], offset: int, order: list[int]
) -> None:
    whole = torch.empty(shape)
    view = whole.permute([axis for axis in order if axis < len(shape)])
    one = entry(tuple(view.shape), view.stride(), offset)
    assert one.is_contiguous == view.is_contiguous()
    assert one.nbytes == view.nbytes
    assert one.nbytes_needed == (4 * (offset + view.numel()) if view.numel() else 0)


def test_a_strided_view_needs_its_storage_up_to_its_last_element() -> None:
    assert entry((3, 2), (10, 4), 5).nbytes_needed == 4 * (5 + 2 * 10 + 1 * 4 + 1)
    assert not entry((3, 2), (10, 4)).is_contiguous


def test_a_tensor_of_parts_has_their_bytes_and_needs_none_of_its_own() -> None:
    part = entry((2,), (1,))
    made = TensorEntry(
        "float32", (9,), (), Storage("", 0, None), parts=(("indices", part), ("values", part))
    )
    assert made.is_composite
    assert not made.is_contiguous
    assert (made.nbytes, made.nbytes_needed) == (2 * part.nbytes, 0)


def test_a_tensor_in_pieces_has_the_bytes_of_its_shape(tmp_path) -> None:
    piece = Chunk((0,), (3,), tmp_path, 0, 12)
    made = replace(entry((6,), (1,)), chunks=(piece,))
    assert made.is_composite
    assert (made.nbytes, made.nbytes_needed) == (24, 0)


def test_the_memory_of_two_tensors_is_equal_only_if_they_are_the_same_elements() -> None:
    one = entry((2, 3), (3, 1))
    assert one.memory == replace(one, requires_grad=True, is_parameter=True).memory
    others = [
        replace(one, storage=replace(STORAGE)),  # equal, and not the same
        replace(one, storage_offset=1),
        replace(one, dtype="int32"),
        replace(one, shape=(3, 2)),
        replace(one, stride=(1, 2)),
        replace(one, is_conj=True),
        replace(one, is_neg=True),
    ]
    assert len({item.memory for item in [one, *others]}) == len(others) + 1


@pytest.mark.parametrize(("fortran", "stride"), [(False, (3, 1)), (True, (1, 2))])
def test_an_array_is_the_tensor_of_its_elements(fortran: bool, stride: tuple[int, int]) -> None:
    made = Array("float32", (2, 3), fortran, STORAGE).entry
    assert (made.dtype, made.shape, made.stride) == ("float32", (2, 3), stride)
    assert made.storage is STORAGE


def test_a_finding_of_a_member_says_in_which() -> None:
    finding = Finding("rule", "note", "byte 3", "text")
    assert finding.within("a.pth") == replace(finding, place="a.pth: byte 3")
    assert replace(finding, place="").within("a.pth") == replace(finding, place="a.pth")
    assert finding.within("a.pth").within("b.zip").place == "b.zip: a.pth: byte 3"


def test_attributes_are_those_of_the_dict_and_of_the_slots() -> None:
    assert attributes_of({"a": 1}) == {"a": 1}
    assert attributes_of((None, {"b": 2})) == {"b": 2}
    assert attributes_of(({"a": 1}, {"b": 2})) == {"a": 1, "b": 2}
    assert attributes_of(7) == {}
    assert Object(Global("m", "C"), (), state=({"a": 1}, {"b": 2})).attributes == {"a": 1, "b": 2}


def test_a_class_has_its_dotted_name_unless_the_file_makes_it() -> None:
    assert Object(Global("torch.nn", "Linear"), ()).class_path == "torch.nn.Linear"
    assert Object(Object(Global("builtins", "type"), ()), ()).class_path == "<computed>"


def test_a_mapping_with_a_class_equals_the_dict_of_its_items() -> None:
    made = DictObject("collections.OrderedDict")
    made["a"] = 1
    made.attributes["_metadata"] = {}
    assert made == {"a": 1}
