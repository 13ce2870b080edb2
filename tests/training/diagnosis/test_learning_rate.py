"""The range test."""

from __future__ import annotations

import pytest
import torch

from torchkeep.errors import WrongArgument
from torchkeep.training import evaluate, train_epoch
from torchkeep.training.diagnosis import find_learning_rate, judge_learning_rate
from torchkeep.training.diagnosis.learning_rate import _curve
from training.diagnosis.cases import batch, loaders, network

OPTIMIZERS = {
    "sgd": lambda model, rate: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
    "adam": lambda model, rate: torch.optim.AdamW(model.parameters(), lr=rate),
}


@pytest.fixture(scope="module", params=sorted(OPTIMIZERS))
def curve(request):
    model = network()
    optimizer = OPTIMIZERS[request.param](model, 1e-3)
    found = find_learning_rate(model, optimizer, loaders()[0], highest=10.0)
    return request.param, found


def test_the_suggested_rate_trains_well(curve):
    name, found = curve
    assert found.lowest < found.suggestion < found.highest
    train, validation = loaders()
    model = network()
    optimizer = OPTIMIZERS[name](model, found.suggestion)
    for _ in range(3):
        train_epoch(model, train, optimizer)
    assert evaluate(model, validation).accuracy > 0.9


def test_the_rate_grows_until_the_loss_does(curve):
    _, found = curve
    assert list(found.rates) == sorted(found.rates)
    assert found.rates[0] == pytest.approx(1e-6)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 100
    assert found.smoothed[-1] > min(found.smoothed)


def test_usual_rates_are_not_judged_and_unusual_ones_are(curve):
    name, found = curve
    usual = {"sgd": (3e-3, 1e-2, 3e-2, 0.1), "adam": (3e-4, 1e-3, 3e-3, 1e-2)}[name]
    assert [judge_learning_rate(found, rate) for rate in usual] == [[]] * 4
    (high,) = judge_learning_rate(found, 30.0)
    assert high.text.startswith("a rate of 30 is too high: the loss is least at ")
    assert high.advice == f"Try {found.suggestion:.1e}."
    (low,) = judge_learning_rate(found, 1e-7)
    assert low.text.startswith("a rate of 1e-07 is too low: below ")
    assert low.text.endswith(" the loss hardly moves")


def test_batches_that_are_harder_than_others_are_not_taken_for_the_rates_doing():
    rates = [10 ** (-6 + 6 * step / 99) for step in range(100)]
    for seed in range(50):
        noise = torch.Generator().manual_seed(seed)
        losses = [
            # Nothing happens below 1e-4, and it grows above 3e-2.
            max(0.5, 2.0 - 1.5 * max(step - 33, 0) / 41 + max(step - 74, 0) / 4)
            + 0.2 * torch.randn((), generator=noise).item()
            for step in range(90)
        ]
        found = _curve(rates[:90], losses)
        assert 1e-5 < found.lowest <= found.suggestion, seed
        assert 2e-4 < found.suggestion < found.highest, seed
        assert 3e-3 < found.highest < 1e-1, seed


def test_a_loss_that_falls_at_no_rate_is_told():
    model = network()
    model[4].bias.data.fill_(-100)
    images, labels = batch()
    shuffled = [(images, labels[torch.randperm(64)]) for _ in range(10)]
    found = find_learning_rate(model, OPTIMIZERS["adam"](model, 1e-3), shuffled, highest=1e-3)
    assert found.suggestion is None
    (told,) = judge_learning_rate(found, 1e-3)
    assert told.text.startswith("the loss fell at no rate of 1e-06 to 0.001: from ")
    assert "overfit_one_batch" in told.advice


def test_the_loaders_own_generator_and_the_groups_ratio_stay():
    train, _ = loaders()
    model = network()
    optimizer = torch.optim.SGD(
        [
            {"params": model[:9].parameters(), "lr": 1e-4},
            {"params": model[9].parameters(), "lr": 1e-3},
        ]
    )
    before = train.generator.get_state()
    find_learning_rate(model, optimizer, train, num_steps=10)
    assert torch.equal(train.generator.get_state(), before)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-3]


def test_arguments_that_make_no_range_test_are_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model, 0.1)
    with pytest.raises(WrongArgument, match=r"a range test from 1 to 0.1 in 100 steps is none"):
        find_learning_rate(model, optimizer, [batch()], lowest=1.0, highest=0.1)
    with pytest.raises(WrongArgument, match=r"no batches left .* Give it a loader or a list"):
        find_learning_rate(model, optimizer, iter([batch()]))
    with pytest.raises(WrongArgument, match="the optimizer holds no parameter of the model"):
        find_learning_rate(network(), optimizer, [batch()])
