"""One epoch, and an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.training import Evaluation, evaluate, freeze, train_epoch, trainable

BATCHES = [
    (torch.eye(2), torch.tensor([0, 1])),
    (torch.eye(2)[:1], torch.tensor([1])),
]


def identity():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    return model


def test_an_evaluation_counts_samples_not_batches():
    result = evaluate(identity(), BATCHES)
    assert (result.num_correct, result.num_samples) == (2, 3)
    right, wrong = (-torch.log_softmax(torch.tensor([1.0, 0.0]), 0)).tolist()
    assert result.loss == pytest.approx((2 * right + wrong) / 3)
    assert result.accuracy == pytest.approx(2 / 3)


def test_an_evaluation_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9), identity())
    first = evaluate(model, BATCHES)
    assert evaluate(model, BATCHES) == first
    assert model.training
    assert model[0].num_batches_tracked == 0


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(WrongArgument, match="no batches"):
        evaluate(identity(), [])


def test_an_epoch_takes_a_step_per_batch_and_reports_each_loss():
    model = identity().eval()
    losses = []
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    train_epoch(model, BATCHES[:1] * 3, optimizer, after_step=losses.append)
    assert model.training
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 3


def test_a_frozen_model_trains_its_head_alone():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    freeze(model, except_=("1",))
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    train_epoch(model, BATCHES[:1], optimizer)
    assert model[0].num_batches_tracked == 0
    assert model[1].weight.grad is not None


def test_accuracy_is_a_share():
    assert Evaluation(loss=0.0, num_correct=3, num_samples=4).accuracy == 0.75
