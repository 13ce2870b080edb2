"""A checkpoint as one `.pth` that plain torch reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.checkpointing import Checkpointer
from torchkeep.checkpointing.layout.export import export_checkpoint
from torchkeep.errors import CheckpointProblem


def test_plain_torch_reads_it_and_goes_on(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with Checkpointer(
        tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, durable=False
    ) as ckpt:
        for _ in ckpt.epochs(2):
            for inputs in ckpt.batches(torch.utils.data.DataLoader(torch.ones(3, 2))):
                loss = model(inputs).sum()
                loss.backward()
                optimizer.step()
                ckpt.step(loss=loss)
            scheduler.step()
            ckpt.metrics(accuracy=0.5)
    export_checkpoint(ckpt.last_saved, tmp_path / "run.pth", durable=False)

    found = torch.load(tmp_path / "run.pth", weights_only=True)
    assert (found["epoch"], found["step"]) == (2, 6)
    assert found["metrics"]["accuracy"] == 0.5
    assert found["loss"] == found["metrics"]["loss"]
    other = nn.Linear(2, 1)
    other.load_state_dict(found["model_state_dict"])
    other_optimizer = torch.optim.AdamW(other.parameters())
    other_optimizer.load_state_dict(found["optimizer_state_dict"])
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(
        other_optimizer.state[other.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    )
    assert found["scheduler_state_dict"]["last_epoch"] == 2


def test_a_checkpoint_without_a_model_is_refused(tmp_path):
    with Checkpointer(tmp_path, extra={"x": 1}, durable=False) as ckpt:
        path = ckpt.save()
    with pytest.raises(CheckpointProblem, match="there is no model in it"):
        export_checkpoint(path, tmp_path / "run.pth")
