"""An index that points outside of its tensor is found before anybody follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchkeep.formats import describe
from torchkeep.formats.torch import sparse_indices
from torchkeep.formats.torch.sparse_indices import MAX_NBYTES

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def rules(path: Path, tensor: object) -> list[str]:
    torch.save({"s": tensor}, path)
    return [finding.rule for finding in describe(path).findings]


def unchecked(layout: torch.layout, *parts: list, size: tuple[int, ...]) -> torch.Tensor:
    if layout is torch.sparse_coo:
        indices, values = map(torch.tensor, parts)
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=False)
    compressed, plain, values = map(torch.tensor, parts)
    return torch.sparse_compressed_tensor(
        compressed, plain, values, size, layout=layout, check_invariants=False
    )


@pytest.mark.parametrize(
    ("indices", "is_wrong"),
    [
        ([[0, 2], [1, 3]], False),
        ([[0, 3], [1, 3]], True),
        ([[0, 2], [1, 4]], True),
        ([[0, -1], [1, 3]], True),
        ([[0, 1 << 40], [1, 3]], True),
    ],
)
def test_the_indices_of_a_coo_tensor(indices: list, is_wrong: bool, tmp_path: Path) -> None:
    tensor = unchecked(torch.sparse_coo, indices, [1.0, 2.0], size=(3, 4))
    assert rules(tmp_path / "a.pth", tensor) == ["sparse-out-of-bounds"] * is_wrong


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize(
    ("compressed", "plain", "is_wrong"),
    [
        ([0, 1, 2], [0, 1], False),
        ([0, 1, 2], [0, 2], True),
        ([0, 1, 3], [0, 1], True),
        ([0, 1, 2], [-1, 1], True),
    ],
)
def test_the_indices_of_a_compressed_tensor(
    layout: torch.layout, compressed: list, plain: list, is_wrong: bool, tmp_path: Path
) -> None:
    tensor = unchecked(layout, compressed, plain, [1.0, 2.0], size=(2, 2))
    assert rules(tmp_path / "a.pth", tensor) == ["sparse-out-of-bounds"] * is_wrong


def test_sound_blocks_are_sound(tmp_path: Path) -> None:
    wide = torch.zeros(4, 9)
    wide[3, 8] = 1
    assert rules(tmp_path / "a.pth", wide.to_sparse_bsr((2, 3))) == []
    assert rules(tmp_path / "b.pth", wide.to_sparse_bsc((2, 3))) == []


def test_too_many_indices_to_read_are_said_to_be_unchecked(tmp_path: Path) -> None:
    tensor = torch.zeros(1, MAX_NBYTES).index_fill(1, torch.arange(MAX_NBYTES // 8), 1.0)
    assert rules(tmp_path / "a.pth", tensor.to_sparse()) == ["sparse-unchecked"]


def test_a_tree_of_too_many_values_is_said_to_be_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_indices, "_MOST_PLACES", 3)
    values = [[torch.eye(2).to_sparse()], [], []]
    assert rules(tmp_path / "a.pth", values) == ["sparse-unchecked"]
