"""A loop that catches the error of a save in the background, and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crash.run import Trainee
from torchkeep.checkpointing import list_checkpoints
from torchkeep.checkpointing.runs import folder as run_folder
from torchkeep.errors import SaveRefused


@pytest.fixture
def refuse_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has the first checkpoint refused, after so many seconds."""

    def refuse(delay: float) -> None:
        write, left = run_folder.write_part, [True]

        def first(*args: Any, **options: Any) -> Any:
            if left and left.pop():
                time.sleep(delay)
                raise SaveRefused("run: the disk is full")
            return write(*args, **options)

        monkeypatch.setattr(run_folder, "write_part", first)

    return refuse


def train(folder: Path, num_steps: int, pause: float = 0.0) -> dict[int, str]:
    """Train, and go on after an error; return the content by the number of steps."""
    trainee = Trainee(16)
    ckpt = trainee.checkpointer(folder, keep_last=None)
    contents: dict[int, str] = {}
    with ckpt:
        while ckpt.num_steps < num_steps:
            try:
                for _ in ckpt.epochs(1):
                    for (inputs,) in ckpt.batches(trainee.loader):
                        trainee.step(inputs)
                        time.sleep(pause)
                        ckpt.step()
                        contents[ckpt.num_steps] = trainee.content()
                        if ckpt.num_steps == num_steps:
                            break
                    break
            except SaveRefused:
                pass
    return contents


def test_a_step_counts_although_an_earlier_save_has_failed(
    tmp_path: Path, refuse_first: Callable[[float], None]
) -> None:
    undisturbed = train(tmp_path / "a", 3)[3]
    refuse_first(0.0)
    assert train(tmp_path / "b", 3, pause=0.2)[3] == undisturbed


def test_a_checkpoint_that_is_due_after_an_error_is_exact(
    tmp_path: Path, refuse_first: Callable[[float], None]
) -> None:
    refuse_first(0.5)
    train(tmp_path, 3)
    found = list_checkpoints(tmp_path)
    assert found[-1].step == 3
    assert [item.path.name for item in found if item.inexact] == []
