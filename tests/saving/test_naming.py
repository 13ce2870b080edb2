"""saving/naming.py: names that carry a version and a date."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from torchkeep.errors import SaveRefused
from torchkeep.saving import save

STATE = {"x": torch.ones(1)}


def saved_name(folder: Path, name: str, **metadata: object) -> str:
    return save(STATE, folder / name, metadata=metadata).path.name  # type: ignore[arg-type]


def test_fields_take_the_values_of_the_metadata(tmp_path: Path) -> None:
    name = saved_name(
        tmp_path, "net-{version}-{epoch:03}-{acc:.2f}.pth", version="1.2", epoch=7, acc=0.914
    )
    assert name == "net-1.2-007-0.91.pth"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_date_is_the_day_alone(tmp_path: Path) -> None:
    before = datetime.now(UTC).strftime("%Y-%m-%d")
    name = saved_name(tmp_path, "net-{date}.safetensors")
    assert f"net-{before}.safetensors" <= name <= f"net-{datetime.now(UTC):%Y-%m-%d}.safetensors"
    given = saved_name(tmp_path, "net-{date}.pth", date="2026-11-23T10:00:00Z")
    assert given == "net-2026-11-23.pth"


def test_the_versions_of_a_save_are_fields_too(tmp_path: Path) -> None:
    assert (
        saved_name(tmp_path, "net-torch{torch_version}.pth") == f"net-torch{torch.__version__}.pth"
    )


def test_a_sharded_model_has_the_filled_name(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2)}
    path = tmp_path / "net-{version}.safetensors"
    report = save(state, path, metadata={"version": "3"}, shard_nbytes=8)
    assert [file.name for file in report.files] == [
        "net-3.safetensors.index.json",
        "net-3-00001-of-00002.safetensors",
        "net-3-00002-of-00002.safetensors",
    ]


def test_doubled_braces_are_braces_and_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "{run}"
    folder.mkdir()
    assert saved_name(folder, "a{{b}}.pth") == "a{b}.pth"
    assert saved_name(folder, "plain.pth") == "plain.pth"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "{versoin}.pth",
            r"a field 'versoin', which the metadata does not have\. Give .*: acc,",
        ),
        ("{}.pth", r"has a field '', which the metadata does not have"),
        (
            "{version.__class__}.pth",
            r"a field 'version.__class__', which the metadata does not",
        ),
        ("{version!r}.pth", r"can't be filled in \(!r is not supported\)\. Write a field as"),
        ("{version.pth", r"can't be filled in \(expected '}' before end of string\)"),
        ("version}.pth", r"can't be filled in \(Single '}' encountered"),
        ("{version:d}.pth", r"can't be filled in \(Unknown format code 'd'"),
        ("{train}.pth", r"metadata 'train' is a dict, which can't be a part of a name"),
        ("{up}.pth", r"metadata 'up' is '\.\./x', which can't be a part of a name\. Take out"),
        ("{back}.pth", r"metadata 'back' is 'a\\\\b', which can't be a part of a name"),
        ("{nothing}.pth", r"metadata 'nothing' is '', which can't be a part of a name"),
    ],
)
def test_a_name_that_can_not_be_filled_in_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    metadata = {"version": "1", "train": {}, "up": "../x", "back": "a\\b", "nothing": "", "acc": 1}
    with pytest.raises(SaveRefused, match=message):
        save(STATE, tmp_path / name, metadata=metadata)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
