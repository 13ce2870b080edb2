"""writing/strided.py: the elements of views, compared with PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.contents import Storage, TensorEntry
from torchkeep.files import CHUNK_NBYTES
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu
from torchkeep.writing.payload import of_bytes
from torchkeep.writing.strided import elements, payload_of_elements

DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]


def entry_of(tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry(
        dtype_name(tensor.dtype),
        tuple(tensor.shape),
        tensor.stride(),
        Storage("", tensor.untyped_storage().nbytes(), 0),
        tensor.storage_offset(),
        is_conj=tensor.is_conj(),
        is_neg=tensor.is_neg(),
    )


def memory_of(tensor: torch.Tensor) -> memoryview:
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return memoryview(bytes(bytes_of(flat)))


def found(tensor: torch.Tensor) -> bytes:
    payload = payload_of_elements(entry_of(tensor), of_bytes(memory_of(tensor)))
    return b"".join(payload.read(0, payload.nbytes))


def expected(tensor: torch.Tensor) -> bytes:
    return bytes(bytes_of(plain_on_cpu(tensor)))


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    dims = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=5))
    offset = draw(st.integers(0, 3))
    needed = offset + 1 + sum(max(size - 1, 0) * step for size, step in dims)
    raw = torch.arange(needed * dtype.itemsize, dtype=torch.int64).to(torch.uint8)
    shape, stride = [size for size, _ in dims], [step for _, step in dims]
    return torch.as_strided(raw.view(dtype), shape, stride, offset)


@given(views())
@settings(max_examples=300, deadline=None)
def test_any_view_gives_its_elements_in_c_order(view: torch.Tensor) -> None:
    assert found(view) == expected(view)


@given(views(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_part_of_the_elements_is_what_the_whole_has_there(
    view: torch.Tensor, data: st.DataObject
) -> None:
    payload = payload_of_elements(entry_of(view), of_bytes(memory_of(view)))
    end = data.draw(st.integers(0, payload.nbytes))
    begin = data.draw(st.integers(0, end))
    assert b"".join(payload.read(begin, end)) == expected(view)[begin:end]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_signs_that_are_kept_apart_are_applied(dtype: torch.dtype) -> None:
    values = torch.tensor([[1 + 2j, -3j, 0], [5, -0.0, float("inf")]], dtype=dtype)
    assert values.conj().imag.is_neg()
    for view in (values.conj(), values.conj().t(), values.conj().imag, values.conj().imag[:, 1:]):
        assert found(view) == expected(view)


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(3 << 20, dtype=torch.int32).view(3, -1).t(),
        torch.arange(1 << 18, dtype=torch.int64).expand(5, -1),
        torch.tensor(7.0).expand(3, 1 << 20),
        torch.arange(1 << 22, dtype=torch.uint8).view(2, -1, 4)[..., :3],
        torch.empty(1 << 21, dtype=torch.int16).random_().view(8, 4, -1, 2).permute(2, 0, 3, 1),
    ],
    ids=["turned", "expanded", "expanded scalar", "sliced", "permuted"],
)
def test_a_large_view_comes_in_pieces_that_are_bounded(view: torch.Tensor) -> None:
    pieces = list(
        elements(
            memory_of(view),
            view.element_size(),
            tuple(view.shape),
            view.stride(),
            int(view.storage_offset()),
        )
    )
    assert b"".join(pieces) == expected(view)
    assert max(map(len, pieces)) <= CHUNK_NBYTES


def test_a_plain_run_is_not_copied() -> None:
    memory = memoryview(bytearray(1 << 20))
    (piece,) = elements(memory, 4, (1 << 10, 1 << 4), (1 << 4, 1), 8)
    memory[32] = 77
    assert piece[0] == 77
