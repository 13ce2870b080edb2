"""matching/tied.py: which metadata entries say that a tensor was left out."""

from __future__ import annotations

from torchkeep.matching.tied import tied_names


def test_a_record_counts_only_if_its_tensor_is_there_and_its_name_is_not() -> None:
    metadata = {"format": "pt", "head": "emb", "gone": "nowhere", "body": "emb", "emb": "body"}
    assert tied_names(metadata, {"emb", "body"}) == {"head": "emb"}
