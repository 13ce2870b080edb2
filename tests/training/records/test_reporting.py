"""A run as its report tells it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from torchkeep.training.preparing import prepare
from torchkeep.training.records.reporting import device_name, report_of
from torchkeep.training.retraining import retrain
from torchkeep.training.settings import Settings
from training.samples import DATA, NET, write_photos

OPTIONS = {"arch": NET, "weights": "none", "epochs": 2, "batch_size": 8, "size": 12, "lr": 1e-4}


def test_a_mistake_is_shown_with_its_picture_and_what_it_was_taken_for(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "photos")
    prepared = prepare(source, Settings(**OPTIONS))
    result = retrain(prepared, tmp_path / "run")
    report = report_of(prepared, result)
    assert report.title == "training.samples:Net on photos"
    assert report.facts.counts["val"] == {"across": 8, "both": 8, "down": 8}
    assert report.mistakes
    losses = [item.loss for item in report.mistakes]
    assert losses == sorted(losses, reverse=True)
    for item in report.mistakes:
        assert item.picture is not None
        assert item.picture.startswith(b"\x89PNG")
        assert item.file.startswith(f"val/{item.true}/")
        assert item.true != item.predicted
    confusion = report.confusion
    assert confusion is not None
    wrong = sum(map(sum, confusion.counts)) - sum(
        row[at] for at, row in enumerate(confusion.counts)
    )
    assert len(report.mistakes) == wrong


def test_samples_that_are_no_pictures_are_told_by_their_numbers(tmp_path: Path) -> None:
    prepared = prepare(DATA, Settings(**OPTIONS))
    report = report_of(prepared, retrain(prepared, tmp_path))
    assert report.mistakes
    assert {item.picture for item in report.mistakes} == {None}
    assert all(item.file.startswith("sample ") for item in report.mistakes)
    assert [row["epoch"] for row in report.history] == [1, 2]
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 for row in report.history)
    assert report.facts.duration_s > sum(row["seconds"] for row in report.history)
    assert report.facts.device == device_name(prepared.device)
    assert [row.name for row in report.layers][-1] == "head"


def test_a_device_has_its_name() -> None:
    assert re.fullmatch(r"cpu \(.*\w.*, \d+ threads?\)", device_name(torch.device("cpu")))
