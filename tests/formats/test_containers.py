"""The table of containers has a row for every kind that a reader can report, and no other."""

from __future__ import annotations

from torchkeep.formats import READERS
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.folders.kinds import FOLDER_KINDS
from torchkeep.formats.zips.kinds import ZIP_KINDS

SHARDED = {"safetensors-sharded", "torch-sharded"}
"""What an index and the files that it names are together."""


def test_every_kind_has_a_row_and_every_row_is_a_kind() -> None:
    kinds = {kind.name for kind in (*READERS, *ZIP_KINDS, *FOLDER_KINDS)}
    assert set(CONTAINERS) == kinds | SHARDED


def test_a_row_is_found_under_its_own_name_and_stands_once() -> None:
    assert all(row.name == name for name, row in CONTAINERS.items())
    assert [name for name, row in CONTAINERS.items() if not row.is_model] == [
        "git-lfs-pointer",
        "text",
        "unknown",
    ]


def test_why_code_runs_is_a_part_of_a_sentence() -> None:
    reasons = [row.runs for row in CONTAINERS.values() if row.runs]
    assert len(reasons) == 7
    assert not [reason for reason in reasons if reason.endswith(".") or reason != reason.strip()]


def test_nothing_that_runs_is_taken_with_weights_only() -> None:
    assert [name for name, row in CONTAINERS.items() if row.weights_only] == [
        "torch-zip",
        "torch-legacy",
    ]
    assert not any(row.runs and row.weights_only for row in CONTAINERS.values())
