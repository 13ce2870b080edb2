"""An inspection obeys the limits that it was made with, for as long as it lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchkeep
from torchkeep.errors import LimitReached


def test_the_list_of_tensors_obeys_the_limits_of_the_inspection(tmp_path: Path):
    path = tmp_path / "many.pth"
    torch.save({f"layer{number}": torch.zeros(1) for number in range(50)}, path)
    found = replace(torchkeep.inspect(path), limits=torchkeep.Limits(places=20))
    advice = (
        r"many\.pth: .* the limit called places allows\. .*Limits\(places=\.\.\.\).*--limit places="
    )
    for ask in (found.tensors, lambda: found.to_json(tensors=True)):
        with pytest.raises(LimitReached, match=advice):
            ask()
    assert "tensors" not in found.to_json()


def test_an_inspection_keeps_its_limits(tmp_path: Path):
    path = tmp_path / "deep.pth"
    torch.save({"a": [[[torch.zeros(1)]]]}, path)
    limits = torchkeep.Limits(depth=20)
    assert torchkeep.inspect(path, limits=limits).limits is limits
    assert torchkeep.inspect(path).limits == torchkeep.Limits()


def test_what_raising_a_limit_would_not_help_is_not_advised(tmp_path: Path):
    path = tmp_path / "deep.pkl"
    path.write_bytes(b"\x80\x02" + b"]" * 600 + b"a" * 599 + b".")  # a list in a list in a list
    with pytest.raises(LimitReached, match=r"nested deeper than the limit depth=500\.$"):
        torchkeep.inspect(path, limits=torchkeep.Limits(depth=10_000))


def test_the_metadata_is_that_of_the_container(tmp_path: Path):
    torchkeep.save({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"by": "me"})
    found = torchkeep.inspect(tmp_path / "a.safetensors")
    assert found.metadata["by"] == "me"
    assert found.to_json()["metadata"] == found.metadata
