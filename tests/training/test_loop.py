"""One epoch, and an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.training import evaluate, freeze, head_names, train_epoch, trainable
from torchkeep.training.loop import total_loss
from torchkeep.training.starting import start

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
    before = model[1].weight.clone()
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    train_epoch(model, BATCHES[:1], optimizer)
    assert model[0].num_batches_tracked == 0
    assert not torch.equal(model[1].weight, before)


def grown(accumulate: int, batches: int, **options) -> tuple[torch.Tensor, list[float]]:
    """Train the identity on parts of one batch; return its weight, and the losses."""
    model, losses = identity(), []
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    parts = [(torch.eye(2), torch.tensor([1, 0]))] * batches
    train_epoch(model, parts, optimizer, accumulate=accumulate, after_step=losses.append, **options)
    return model.weight.detach(), losses


def test_batches_that_are_accumulated_make_one_step_of_their_mean():
    assert torch.equal(grown(3, 3)[0], grown(1, 1)[0])
    assert len(grown(3, 7)[1]) == 3


def test_a_gradient_from_before_does_not_count():
    model = identity()
    model.weight.grad = torch.full((2, 2), 9.0)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    train_epoch(model, [(torch.eye(2), torch.tensor([1, 0]))], optimizer)
    assert torch.equal(model.weight, grown(1, 1)[0])


def test_a_gradient_is_no_longer_than_it_may_be():
    moved = grown(1, 1, clip_norm=0.01)[0] - torch.eye(2)
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bits_train_as_well(precision: str):
    scaler = torch.amp.GradScaler("cpu") if precision == "fp16" else None
    weight, losses = grown(1, 4, precision=precision, scaler=scaler)
    assert weight.dtype == torch.float32
    assert losses[-1] < losses[0]
    torch.testing.assert_close(weight, grown(1, 4)[0], rtol=0.05, atol=0.05)
    assert not torch.equal(weight, grown(1, 4)[0])


def test_the_rate_is_set_before_each_step():
    model, seen = identity(), []
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)

    def before_step() -> None:
        seen.append(model.weight.clone())
        optimizer.param_groups[0]["lr"] = 0.0

    train_epoch(model, BATCHES, optimizer, before_step=before_step)
    assert all(torch.equal(weight, torch.eye(2)) for weight in [*seen, model.weight])
    assert len(seen) == 2


@pytest.mark.parametrize(("arch", "size"), [("googlenet", 96), ("inception_v3", 299)])
def test_auxiliary_outputs_are_trained_as_well(arch: str, size: int):
    torch.manual_seed(0)
    model = start(arch, "none", ["a", "b"]).model
    heads = [model.get_submodule(name).weight for name in head_names(model)]
    assert len(heads) == (3 if arch == "googlenet" else 2)
    before = [item.clone() for item in heads]
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_epoch(model, [(torch.randn(2, 3, size, size), torch.tensor([0, 1]))], optimizer)
    assert not any(map(torch.equal, before, heads))


def test_an_auxiliary_output_counts_three_tenths():
    outputs, labels = torch.eye(2), torch.tensor([0, 1])
    one = total_loss(outputs, labels)
    assert total_loss((outputs, None), labels) == one
    torch.testing.assert_close(total_loss((outputs, outputs, None, outputs), labels), 1.6 * one)
    halves = total_loss((outputs, outputs), labels, lambda *_: torch.tensor(2.0))
    torch.testing.assert_close(halves, torch.tensor(2.6))
