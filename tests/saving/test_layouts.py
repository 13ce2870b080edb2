"""saving/live.py: tensors of every layout in torch zips, read back by plain torch and here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torchkeep
from torchkeep.errors import DamagedFile, SaveRefused
from torchkeep.formats import describe
from torchkeep.loading import load
from torchkeep.saving import save
from torchkeep.tensors import same_bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype"),
    pytest.mark.filterwarnings("ignore:.*quantized.*deprecated"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
]

_DENSE = torch.tensor([[0.0, 1.5, 0, 0], [2, 0, 0, -3], [0, 0, 0, 0], [0, 0, 4, 0]])
_SCALES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "coo": lambda: _DENSE.to_sparse(),
    "not coalesced": lambda: torch.sparse_coo_tensor([[0, 0, 1]], [1.0, 2, 3], (4,)),
    "hybrid": lambda: torch.sparse_coo_tensor([[0, 2]], [[1.0, 2], [3, 4]], (4, 2)),
    "csr": lambda: _DENSE.to_sparse_csr(),
    "csc": lambda: _DENSE.to_sparse_csc(),
    "bsr": lambda: _DENSE.to_sparse_bsr((2, 2)),
    "bsc": lambda: _DENSE.to_sparse_bsc((2, 2)),
    "empty": lambda: torch.zeros(3, 2).to_sparse(),
    "parameter": lambda: torch.nn.Parameter(_DENSE.to_sparse()),
    "per tensor": lambda: torch.quantize_per_tensor(_DENSE, 0.1, 3, torch.qint8),
    "per tensor of 32 bits": lambda: torch.quantize_per_tensor(_DENSE, 0.1, 3, torch.qint32),
    "per tensor, turned": lambda: torch.quantize_per_tensor(_DENSE[:2], 0.1, 3, torch.quint8).t(),
    "per channel": lambda: torch.quantize_per_channel(
        _DENSE, _SCALES, torch.zeros(4, dtype=torch.int64), 1, torch.qint8
    ),
    "of half bytes": lambda: torch.quantize_per_channel(
        _DENSE, _SCALES.float(), torch.zeros(4), 0, torch.quint4x2
    ),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)]),
}


def plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.detach().to_dense()


def facts(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what must be the same of a tensor besides its values."""
    is_coalesced = tensor.is_coalesced() if tensor.layout == torch.sparse_coo else None
    scheme = tensor.qscheme() if tensor.is_quantized else None
    return type(tensor), tensor.layout, tensor.dtype, is_coalesced, scheme, tensor.is_nested


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_comes_back_in_plain_torch_and_here(tmp_path: Path, kind: str) -> None:
    tensor, path = LAYOUTS[kind](), tmp_path / "file.pth"
    save({"x": tensor, "again": tensor, "dense": _DENSE}, path)
    for found in (torch.load(path, weights_only=True), load(path)):
        assert same_bits(plain(found["x"]), plain(tensor))
        assert facts(found["x"]) == facts(tensor)
        assert found["again"] is found["x"]
        assert torch.equal(found["dense"], _DENSE)
    assert torchkeep.verify(path).verified


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_torch_writes_of_a_layout_names_the_same_functions(tmp_path: Path, kind: str) -> None:
    tensor = LAYOUTS[kind]()
    save({"x": tensor}, tmp_path / "ours.pth")
    torch.save({"x": tensor}, tmp_path / "theirs.pth")
    ours, theirs = (
        torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / name)
        for name in ("ours.pth", "theirs.pth")
    )
    assert ours == theirs == []


@pytest.mark.parametrize(("kind", "part"), [("coo", "x.values"), ("per tensor", "x")])
def test_a_changed_part_of_a_tensor_is_found_when_it_is_loaded(
    tmp_path: Path, kind: str, part: str
) -> None:
    path = tmp_path / "file.pth"
    report = save({"x": LAYOUTS[kind]()}, path)
    assert part in report.digests
    entry = describe(path).root["x"]
    storage = dict(entry.parts)["values"].storage if entry.parts else entry.storage
    data = bytearray(path.read_bytes())
    data[storage.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=f"tensor '{part}' differs from what was saved"):
        load(path)


def test_a_jagged_tensor_is_refused_by_its_path(tmp_path: Path) -> None:
    parts = [torch.ones(2, 3), torch.zeros(4, 3)]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with pytest.raises(SaveRefused, match=r"'a\.0' is jagged\. Save its values\(\) and off"):
        save({"a": [jagged]}, tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("csr", r"tensor 'x' is sparse \(torch.sparse_csr\)\. Save .*, or as \.pth\."),
        ("per tensor", r"tensor 'x' is quantized\. Save tensor\.dequantize\(\), or as \.pth\."),
        ("nested", r"tensor 'x' is nested\. Save its parts, or as \.pth\."),
    ],
)
def test_safetensors_refuses_a_layout_and_says_where_it_fits(
    tmp_path: Path, kind: str, message: str
) -> None:
    with pytest.raises(SaveRefused, match=message):
        save({"x": LAYOUTS[kind]()}, tmp_path / "file.safetensors")
