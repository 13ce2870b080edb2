"""A run as TensorBoard reads it back."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchkeep.errors import MissingExtra
from torchkeep.training.preparing import prepare
from torchkeep.training.records.tensorboard import event_log
from torchkeep.training.retraining import Event, retrain
from torchkeep.training.settings import Settings
from training.samples import DATA, NET

OPTIONS = {"arch": NET, "weights": "none", "epochs": 3, "batch_size": 8, "size": 12, "lr": 0.02}


class Stop(Exception):
    """Ends a run in its midst."""


def run(folder: Path, stop: Callable[[Event], bool] = lambda _: False, **options: object) -> None:
    def notify(event: Event) -> None:
        if stop(event):
            raise Stop

    retrain(prepare(DATA, Settings(**OPTIONS | options)), folder, notify=notify)


def at_step(number: int) -> Callable[[Event], bool]:
    return lambda event: event.kind == "step" and event.step == number


def at_epoch(number: int) -> Callable[[Event], bool]:
    return lambda event: event.kind == "epoch" and event.values["epoch"] == number


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard shows: by tag the values by step, none of which is there twice."""
    log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    found = {}
    for tag in log.Tags()["scalars"]:
        rows = [(item.step, item.value) for item in log.Scalars(tag)]
        assert [step for step, _ in rows] == sorted({step for step, _ in rows}), tag
        found[tag] = dict(rows)
    return found


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def check(folder: Path, num_steps: int = 18) -> dict[str, dict[int, float]]:
    """Make sure that the log has what the history has, and each step's loss."""
    found, rows = read(folder), history(folder)
    assert list(found["loss"]) == list(range(num_steps))
    for number, row in enumerate(rows):
        losses = [found["loss"][step] for step in range(number * 6, number * 6 + 6)]
        assert sum(losses) / 6 == pytest.approx(row["loss"], rel=1e-5)
    for name in ("val_loss", "val_accuracy", "lr", "seconds", "images_per_second"):
        wanted = {row["step"]: row[name] for row in rows if name in row}
        assert found[name] == pytest.approx(wanted, rel=1e-5), name
    return found


def test_the_log_has_what_the_history_has_and_each_step(tmp_path: Path) -> None:
    run(tmp_path, tensorboard=True, lr_decay=0.5)
    found = check(tmp_path)
    assert found.keys() == {
        *("loss", "val_loss", "val_accuracy", "lr", "seconds", "images_per_second"),
        *("lr/head", "lr/head_no_weight_decay", "lr/body", "lr/body_no_weight_decay"),
        *("lr/stem", "lr/stem_no_weight_decay"),
    }
    assert found["lr/head"] == found["lr"]
    half = {step: rate / 2 for step, rate in found["lr"].items()}
    assert found["lr/body"] == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("at", [at_step(n) for n in (9, 12, 13, 18)] + [at_epoch(1)])
def test_a_run_that_was_broken_off_has_no_step_twice(
    tmp_path: Path, at: Callable[[Event], bool]
) -> None:
    options = {"tensorboard": True, "every_steps": 2, "workers": 2}
    with pytest.raises(Stop):
        run(tmp_path, at, **options)
    run(tmp_path, **options)
    check(tmp_path)
    files = sorted((tmp_path / "tensorboard").iterdir())
    run(tmp_path, **options)  # which has nothing left to do
    assert sorted((tmp_path / "tensorboard").iterdir()) == files


def test_files_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    optimizer = torch.optim.SGD([torch.ones(1)])
    for begin, name in ((0, "z"), (1, "a")):
        with event_log(folder, optimizer, begin, []) as write:
            for step in (begin + 1, begin + 2):
                write(Event("step", step, 9, 0, step, {"loss": begin + step}))
        # Names begin with the second; within it what comes first is a matter of the host's name.
        (new,) = folder.glob(f"*.{socket.gethostname()}.*")
        stamp = new.name.split(".")[3]
        new.rename(folder / f"events.out.tfevents.{stamp}.{name}.1.0")
    assert read(tmp_path)["loss"] == {0: 1.0, 1: 3.0, 2: 4.0}


def test_a_log_may_begin_in_the_midst_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, at_step(8))
    assert not (tmp_path / "tensorboard").exists()
    run(tmp_path, tensorboard=True)
    found, rows = read(tmp_path), history(tmp_path)
    assert list(found["val_loss"]) == [row["step"] for row in rows]
    assert list(found["loss"]) == list(range(6, 18))
    assert list(found["lr/head"]) == [6, 12, 18]


def test_a_log_needs_tensorboard_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r"--tensorboard needs tensorboard, not .*\[tensorboard"):
        prepare(DATA, Settings(**OPTIONS, tensorboard=True))
