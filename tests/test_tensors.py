"""tensors.py: bytes to tensors and back, checked before they exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import torchkeep
from releases import DTYPES
from torchkeep.contents import ITEM_SIZE, Storage, TensorEntry, contiguous_stride
from torchkeep.errors import DamagedFile, FileMissing, UnsupportedContent
from torchkeep.tensors import (
    _COMPARED_NBYTES,
    TensorReader,
    bytes_of,
    dtype_name,
    identity,
    plain_on_cpu,
    same_bits,
    torch_dtype,
)


def entry_of(
    folder: Path,
    dtype: str,
    shape: tuple[int, ...],
    offset: int | None,
    *,
    nbytes: int | None = None,
    **kwargs,
) -> TensorEntry:
    """Return an entry of the file that `file_of` writes."""
    stride = kwargs.pop("stride", contiguous_stride(shape))
    storage_kwargs = {key: kwargs.pop(key) for key in ("device", "byteorder") if key in kwargs}
    size = ITEM_SIZE[dtype] * torch.Size(shape).numel() if nbytes is None else nbytes
    storage = Storage("0", size, offset, path=folder / "file", **storage_kwargs)
    return TensorEntry(dtype, shape, stride, storage, **kwargs)


def file_of(folder: Path, tensor: torch.Tensor, *, before: int = 0) -> Path:
    path = folder / "file"
    path.write_bytes(bytes(before) + bytes(bytes_of(tensor)))
    return path


# --- dtypes and bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_and_its_name_are_the_same_both_ways(name: str) -> None:
    dtype = torch_dtype(name)
    assert dtype_name(dtype) == name
    assert dtype.itemsize == ITEM_SIZE[name]


def test_a_dtype_that_torch_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedContent, match=r"dtype float3 is unknown to PyTorch"):
        torch_dtype("float3")


def test_the_view_of_a_tensors_bytes_keeps_it_alive_and_writes_into_it() -> None:
    view = bytes_of(torch.full((1000,), 7, dtype=torch.uint8))
    junk = [torch.zeros(1000, dtype=torch.uint8) for _ in range(20)]
    assert bytes(view) == bytes([7]) * 1000
    del junk
    tensor = torch.zeros(2, dtype=torch.int16)
    bytes_of(tensor)[2] = 5
    assert tensor.tolist() == [0, 5]
    assert len(bytes_of(torch.empty(0, 3))) == 0


def test_bytes_that_do_not_lie_in_one_run_are_refused() -> None:
    with pytest.raises(ValueError, match="only a contiguous tensor on the CPU"):
        bytes_of(torch.ones(2, 3).t())


def test_a_conjugated_view_becomes_its_values() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert bytes(bytes_of(plain_on_cpu(tensor.conj()))) == bytes(
        bytes_of(torch.tensor([1 - 2j, 3 + 4j]))
    )
    assert plain_on_cpu(tensor.conj().imag).tolist() == [-2.0, 4.0]


def test_bits_are_compared_and_not_values() -> None:
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    base = torch.arange(9, dtype=torch.uint8)
    assert same_bits(base[1:], base[1:].clone())
    assert not same_bits(base[1:], base[:-1])


# --- Reading -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:BComplex32")
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, name: str, mmap: bool) -> None:
    torch.manual_seed(0)
    raw = torch.randint(0, 2, (6 * ITEM_SIZE[name],), dtype=torch.uint8)
    tensor = raw.view(torch_dtype(name)).reshape(2, 3)
    path = file_of(tmp_path, tensor, before=32)
    with TensorReader(path, mmap=mmap) as reader:
        made = reader.materialize(entry_of(tmp_path, name, (2, 3), 32))
    assert made.shape == (2, 3)
    assert same_bits(made, tensor)


@pytest.mark.parametrize("mmap", [False, True])
def test_aliases_share_memory_and_keep_their_strides(tmp_path: Path, mmap: bool) -> None:
    tensor = torch.arange(12.0)
    storage = Storage("0", 48, 0, path=tmp_path / "file")
    whole = TensorEntry("float32", (3, 4), (4, 1), storage)
    turned = TensorEntry("float32", (4, 2), (1, 4), storage, storage_offset=4)
    with TensorReader(file_of(tmp_path, tensor), mmap=mmap) as reader:
        one, two = reader.materialize(whole), reader.materialize(turned)
    assert torch.equal(two, tensor.view(3, 4)[1:].t())
    assert two.stride() == (1, 4)
    one[1, 0] = 99
    assert two[0, 0] == 99


def test_two_tensors_are_one_only_with_the_same_values_in_the_same_place() -> None:
    base = torch.arange(4.0)
    assert identity(base) == identity(base.detach())
    for other in (base.clone(), base[:3], base.view(2, 2), base.view(torch.int32), base[::2]):
        assert identity(base) != identity(other)
    signed = torch.ones(2, dtype=torch.complex64)
    assert identity(signed) != identity(signed.conj())
    empty, meta = base[:0], torch.empty(2, device="meta")
    assert identity(empty) == identity(empty) != identity(base[:0])
    assert identity(meta) != identity(meta.detach())


def test_a_mapped_tensor_is_private_and_has_a_storage_of_its_own(tmp_path: Path) -> None:
    path = file_of(tmp_path, torch.arange(8.0), before=16)
    with TensorReader(path, mmap=True) as reader:
        tensor = reader.materialize(entry_of(tmp_path, "float32", (4,), 32))
    assert tensor.untyped_storage().nbytes() == 16
    tensor.zero_()
    assert path.read_bytes()[32:48] == bytes(bytes_of(torch.arange(4.0, 8.0)))


def test_an_element_that_is_not_aligned_is_read_instead_of_mapped(tmp_path: Path) -> None:
    path = file_of(tmp_path, torch.arange(4.0), before=3)
    with TensorReader(path, mmap=True) as reader:
        tensor = reader.materialize(entry_of(tmp_path, "float32", (4,), 3))
    assert tensor.tolist() == [0, 1, 2, 3]
    assert tensor.data_ptr() % 4 == 0


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "complex64", "uint8"])
def test_the_other_byte_order_is_turned(tmp_path: Path, dtype: str, mmap: bool) -> None:
    values = torch.tensor([1, 2, 250]).to(torch_dtype(dtype))
    raw = bytearray(bytes_of(values))
    width = ITEM_SIZE[dtype] // (2 if dtype.startswith("complex") else 1)
    for start in range(0, len(raw), width):
        raw[start : start + width] = raw[start : start + width][::-1]
    (tmp_path / "file").write_bytes(raw)
    other = "big" if sys.byteorder == "little" else "little"
    entry = entry_of(tmp_path, dtype, (3,), 0, byteorder=other)
    live = torch.zeros(3, dtype=torch_dtype(dtype))
    with TensorReader(tmp_path / "file", mmap=mmap) as reader:
        assert torch.equal(reader.materialize(entry), values)
        reader.fill(live, entry)
        assert torch.equal(live, values)
        assert reader.match(values, entry)


def test_parameters_and_gradient_flags_come_back(tmp_path: Path) -> None:
    path = file_of(tmp_path, torch.ones(2))
    with TensorReader(path) as reader:
        frozen = reader.materialize(entry_of(tmp_path, "float32", (2,), 0, is_parameter=True))
        leaf = reader.materialize(entry_of(tmp_path, "float32", (2,), 0, requires_grad=True))
    assert type(frozen) is torch.nn.Parameter
    assert not frozen.requires_grad
    assert type(leaf) is torch.Tensor
    assert leaf.requires_grad


def test_tensors_are_made_on_the_device_that_is_asked_for(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "float32", (2,), 0, device="cuda:3")
    with TensorReader(file_of(tmp_path, torch.ones(2)), device="meta") as reader:
        assert reader.materialize(entry).device.type == "meta"
    with TensorReader(tmp_path / "file") as reader:
        assert reader.materialize(entry).device.type == "cpu"


def test_an_entry_saved_from_meta_has_shape_and_no_values(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "float32", (2, 3), None, device="meta")
    with TensorReader(file_of(tmp_path, torch.ones(1))) as reader:
        assert reader.materialize(entry).shape == (2, 3)
        assert reader.materialize(entry).is_meta


@pytest.mark.parametrize("mmap", [False, True])
def test_empty_and_scalar_tensors_are_read(tmp_path: Path, mmap: bool) -> None:
    with TensorReader(file_of(tmp_path, torch.tensor(5.0)), mmap=mmap) as reader:
        assert reader.materialize(entry_of(tmp_path, "float32", (), 0)) == 5
        assert reader.materialize(entry_of(tmp_path, "float32", (0, 4), 4, nbytes=0)).shape == (
            0,
            4,
        )
        assert reader.materialize(entry_of(tmp_path, "float32", (0,), None, nbytes=0)).shape == (0,)


def test_a_single_read_keeps_nothing_and_shares_nothing(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "float32", (2, 2), 0, stride=(1, 2))
    with TensorReader(file_of(tmp_path, torch.arange(4.0))) as reader:
        one, two = reader.read(entry), reader.read(entry)
    assert one.tolist() == [[0, 2], [1, 3]]
    assert one.data_ptr() != two.data_ptr()


# --- Filling and comparing ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [torch.zeros, lambda *shape: torch.zeros(*shape[::-1]).t()])
def test_a_live_tensor_is_filled_in_place_and_autograd_knows(tmp_path: Path, make) -> None:
    values = torch.randn(3, 4)
    live = make(3, 4)
    address, version = live.data_ptr(), live._version
    with TensorReader(file_of(tmp_path, values)) as reader:
        reader.fill(live, entry_of(tmp_path, "float32", (3, 4), 0))
    assert torch.equal(live, values)
    assert live.data_ptr() == address
    assert live._version > version


def test_a_parameter_and_an_inference_tensor_are_filled(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    with torch.inference_mode():
        inert = torch.zeros(2)
    with TensorReader(file_of(tmp_path, torch.ones(2))) as reader:
        reader.fill(parameter, entry_of(tmp_path, "float32", (2,), 0))
        reader.fill(inert, entry_of(tmp_path, "float32", (2,), 0))
    assert parameter.tolist() == inert.tolist() == [1, 1]
    assert parameter.requires_grad


def test_one_different_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    values = torch.arange(_COMPARED_NBYTES + 13, dtype=torch.int64).to(torch.uint8)
    entry = entry_of(tmp_path, "uint8", tuple(values.shape), 5)
    with TensorReader(file_of(tmp_path, values, before=5)) as reader:
        assert reader.match(values, entry)
        assert same_bits(values, values.clone())
        for place in (0, _COMPARED_NBYTES - 1, _COMPARED_NBYTES, len(values) - 1):
            changed = values.clone()
            changed[place] ^= 1
            assert not reader.match(changed, entry)
            assert not same_bits(changed, values)
        assert not reader.match(values[:-1], entry)
        assert not reader.match(values.to(torch.int8), entry)


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    [
        {"shape": (5,), "stride": (1,)},
        {"shape": (2, 2), "stride": (3, 1)},
        {"shape": (4,), "stride": (1,), "storage_offset": 1},
        {"shape": (4,), "stride": (-1,), "storage_offset": 3},
        {"shape": (1,), "stride": (1,), "storage_offset": -1},
        {"shape": (1 << 62, 1 << 62), "stride": (1 << 62, 1)},
    ],
)
def test_a_view_past_its_storage_is_refused_by_name(tmp_path: Path, view: dict) -> None:
    entry = TensorEntry("float32", storage=Storage("0", 16, 0, path=tmp_path / "file"), **view)
    path = file_of(tmp_path, torch.ones(100))
    with TensorReader(path) as reader:
        for act in (reader.materialize, reader.read, reader.check):
            with pytest.raises(DamagedFile, match=r"file: tensor 'fc.weight' .* reaches past its"):
                act(entry, "fc.weight")


def test_a_storage_past_the_end_of_the_file_is_refused_by_name(tmp_path: Path) -> None:
    for mmap in (False, True):
        with (
            TensorReader(file_of(tmp_path, torch.ones(4)), mmap=mmap) as reader,
            pytest.raises(
                DamagedFile, match=r"'fc' lies in bytes 8 to 24, and the file ends at 16"
            ),
        ):
            reader.materialize(entry_of(tmp_path, "float32", (4,), 8), "fc")


def test_a_storage_without_bytes_is_refused_by_name(tmp_path: Path) -> None:
    with (
        TensorReader(file_of(tmp_path, torch.ones(4))) as reader,
        pytest.raises(DamagedFile, match=r"a tensor in storage '0' has no bytes in the file"),
    ):
        reader.materialize(entry_of(tmp_path, "float32", (4,), None))


def test_a_tensor_of_a_dtype_that_torch_lacks_is_refused_by_name(tmp_path: Path) -> None:
    problem = r"file: tensor 'fc' has dtype f6_e2m3, which PyTorch .* has not\. Install a newer"
    with (
        TensorReader(file_of(tmp_path, torch.ones(4))) as reader,
        pytest.raises(UnsupportedContent, match=problem),
    ):
        reader.materialize(entry_of(tmp_path, "f6_e2m3", (4,), 0, nbytes=3), "fc")


# --- Every dtype that PyTorch has ----------------------------------------------------------------

ALL_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
UNSAVED = {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
"""Those that `torch.save` does not know."""


def tensor_of(kind: torch.dtype) -> torch.Tensor:
    if kind in (torch.quint4x2, torch.quint2x4):
        scales, zeros = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3)
        return torch.quantize_per_channel(torch.randn(3, 5), scales, zeros, 0, kind)
    if str(kind).startswith("torch.q"):
        return torch.quantize_per_tensor(torch.randn(3, 5), 0.1, 0, kind)
    raw = torch.randint(0, 2, (3, 64), dtype=torch.uint8)
    return raw.view(kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", sorted(ALL_DTYPES.keys() - UNSAVED))
def test_a_file_of_torchs_with_any_dtype_is_described_and_loads_bit_for_bit(
    tmp_path: Path, name: str, is_zip: bool
) -> None:
    torch.manual_seed(0)
    tensor = tensor_of(ALL_DTYPES[name])
    path = tmp_path / "file.pt"
    torch.save({"fc.weight": tensor}, path, _use_new_zipfile_serialization=is_zip)
    with torchkeep.open(path) as file:
        entry, opened = file.entry("fc.weight"), file["fc.weight"]
    assert (f"torch.{entry.dtype}", entry.shape) == (name, tuple(tensor.shape))
    for made in (opened, torchkeep.load(path)["fc.weight"]):
        assert same_bits(made, tensor)
        if tensor.is_quantized:
            assert made.qscheme() == tensor.qscheme()
            assert torch.equal(made.dequantize(), tensor.dequantize())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [torch.quint8, torch.quint4x2])
@pytest.mark.parametrize(
    ("scales", "axis", "problem"),
    [(2, 0, "each of 3 channels needs a scale"), (3, 7, "no dimension 7"), (3, -1, "dimension -1")],
)
def test_scales_that_do_not_fit_the_channels_are_refused(
    tmp_path: Path, kind: torch.dtype, scales: int, axis: int, problem: str
) -> None:
    path = file_of(tmp_path, torch.ones(100))
    parts = tuple(
        (part, entry_of(tmp_path, "float32", (scales,), 0)) for part in ("scales", "zero_points")
    )
    name = str(kind).removeprefix("torch.")
    entry = entry_of(tmp_path, name, (3, 4), 0, quantizer=("per_channel_affine", axis), parts=parts)
    with TensorReader(path) as reader, pytest.raises(DamagedFile, match=problem):
        reader.materialize(entry, "fc")


def test_what_lies_packed_in_an_archive_is_refused_by_name(tmp_path: Path) -> None:
    packed = TensorEntry("float32", (4,), (1,), Storage("0", 16, 0))
    with (
        TensorReader(file_of(tmp_path, torch.ones(4))) as reader,
        pytest.raises(UnsupportedContent, match=r"tensor 'fc' lies packed in an archive\. Unpack"),
    ):
        reader.materialize(packed, "fc")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="no such file"):
        TensorReader(tmp_path / "nothing")


def lazily_signed() -> dict[str, torch.Tensor]:
    """Views whose sign PyTorch keeps in a flag and not in the bytes."""
    values = torch.tensor([1 + 2j, 3 - 4j])
    return {"conj": values.conj(), "part": values.conj()[1:], "neg": values.conj().imag}


@pytest.mark.parametrize("name", ["conj", "part", "neg"])
def test_a_lazily_conjugated_or_negated_tensor_loads_as_torch_loads_it(
    tmp_path: Path, name: str
) -> None:
    torch.save({"a.weight": lazily_signed()[name]}, tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth")["a.weight"]
    assert torch.equal(torchkeep.load(tmp_path / "a.pth")["a.weight"], expected.resolve_neg())
    model = torch.nn.Module()
    model.a = torch.nn.Module()
    model.a.register_buffer("weight", torch.zeros_like(expected.resolve_conj().resolve_neg()))
    assert torchkeep.load_into(model, tmp_path / "a.pth").digests
    assert torch.equal(model.a.weight, expected.resolve_neg())
