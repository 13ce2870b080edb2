"""matching/tied.py: which metadata entries say that a tensor was left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import TIED
from torchkeep.matching.tied import tied_names


def contents(metadata: dict[str, str], container: str = "safetensors") -> Contents:
    return Contents(Path("x"), 0, container, {"emb": 1, "body": 2}, metadata)


def test_a_record_counts_only_if_its_tensor_is_there_and_its_name_is_not() -> None:
    metadata = {"format": "pt", "head": "emb", "gone": "nowhere", "body": "emb", "emb": "body"}
    assert tied_names(contents(metadata)) == {"head": "emb"}
    assert tied_names(contents(metadata, "torch-zip")) == {}


def test_torchkeeps_own_table_is_believed_alone() -> None:
    metadata = {"best": "emb", "head": "emb", TIED: '{"head": "emb", "gone": "x"}'}
    assert tied_names(contents(metadata)) == {"head": "emb"}
    assert tied_names(contents({"best": "emb", TIED: "{}"})) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": "b", "a": "c"}', "[" * 100_000])
def test_a_broken_table_is_damage(text: str) -> None:
    with pytest.raises(DamagedFile, match=r"^x: its metadata 'torchkeep.tied' is not the table"):
        tied_names(contents({TIED: text}))
