"""What a run says without being asked: warnings about the program, log lines about what happens."""

from __future__ import annotations

import logging
import os
import signal
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from torchkeep.checkpointing import Checkpointer
from torchkeep.errors import Preempted


def checkpointer(folder, **options) -> Checkpointer:
    torch.manual_seed(0)
    options = {"durable": False, "background": False} | options
    return Checkpointer(folder, model=nn.Linear(2, 2), **options)


def train(ckpt: Checkpointer, num_epochs: int = 2, on_batch=lambda: None, **metrics) -> None:
    with ckpt:
        for _ in ckpt.epochs(num_epochs):
            for _ in ckpt.batches(DataLoader(range(2))):
                on_batch()
                ckpt.step(loss=1.0)
            if metrics:
                ckpt.metrics(**metrics)


def test_the_first_checkpoint_that_a_resume_would_refuse_says_so_once(tmp_path):
    ckpt = checkpointer(tmp_path, extra={"counts": object()}, every_epochs=1)
    with pytest.warns(UserWarning, match="allow_inexact=True: extra.*object") as caught:
        train(ckpt, num_epochs=3)
    assert len(caught) == 1
    assert "step-00000002 is no exact checkpoint" in str(caught[0].message)


def test_a_resume_that_passes_a_damaged_checkpoint_over_says_so(tmp_path, caplog):
    train(checkpointer(tmp_path, keep_last=None))
    assert caplog.records == []
    os.truncate(tmp_path / "step-00000004" / "state.safetensors", 100)
    train(checkpointer(tmp_path))
    first, second = (record.getMessage() for record in caplog.records)
    assert "step-00000004 is damaged and was skipped: state.safetensors has 100 bytes" in first
    assert "goes on from" in second
    assert "step-00000002, step 2" in second
    assert {record.name for record in caplog.records} == {"torchkeep"}


def test_a_run_that_makes_room_says_why_it_ends(tmp_path, caplog):
    with pytest.raises(Preempted):
        train(checkpointer(tmp_path), on_batch=lambda: os.kill(os.getpid(), signal.SIGTERM))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("SIGTERM: the run is saved as ")
    assert "step-00000001" in record.getMessage()
    assert "exit code 75" in record.getMessage()


def test_a_metric_that_never_came_is_named_at_the_end(tmp_path):
    with pytest.warns(UserWarning, match=r"keep_best is for 'accuracy'.*metrics\(accuracy=...\)"):
        train(checkpointer(tmp_path / "a", keep_best=("accuracy", "max")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(checkpointer(tmp_path / "b", keep_best=("accuracy", "max")), accuracy=0.5)
        train(checkpointer(tmp_path / "c", keep_best=("loss", "min")))
        train(checkpointer(tmp_path / "d", keep_best=("accuracy", "max")), num_epochs=0)
