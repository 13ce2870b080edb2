"""A training that is watched while it runs."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional

from torchkeep.training import evaluate, freeze, replace_head, trainable
from torchkeep.training.diagnosis import Finding, Watch
from torchkeep.training.diagnosis.epochs import Epoch, far_apart
from training.diagnosis.cases import batch, checks, loaders, network


def train(model, optimizer, *, num_epochs=1, watch=None, batches=None, as_tensor=False, hook=None):
    """Train under a watch, and return it."""
    watch = watch or Watch(model, optimizer, 10)
    ours, validation = loaders()
    for _ in range(num_epochs):
        model.train()
        for images, labels in batches or ours:
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            watch.after_backward()
            optimizer.step()
            if hook is not None:
                hook(model)
            watch.after_step(loss if as_tensor else loss.item())
        watch.after_epoch(evaluate(model, validation))
    return watch


def sgd(model, rate=0.05):
    return torch.optim.SGD(trainable(model), lr=rate, momentum=0.9)


# --- Healthy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_small_network_that_learns_digits_gives_no_finding(as_tensor):
    model = network(int(as_tensor))
    watch = train(model, sgd(model), num_epochs=6, as_tensor=as_tensor)
    assert watch.findings == []
    assert watch.epochs[-1].accuracy > 0.95
    assert watch.epochs[-1].train_loss < 0.1


def test_a_fresh_head_on_a_frozen_network_gives_no_finding():
    model = network()
    train(model, sgd(model), num_epochs=2)
    replace_head(model, 10)
    freeze(model, except_=["9"])
    assert train(model, sgd(model), num_epochs=4).findings == []


def test_a_trained_network_that_goes_on_gives_no_finding():
    model = network()
    train(model, sgd(model), num_epochs=4)
    assert train(model, sgd(model, 1e-4), num_epochs=2).findings == []


def test_unfreezing_between_epochs_gives_no_finding():
    model = network()
    freeze(model, except_=["9"])
    watch = train(model, sgd(model))
    model.requires_grad_(True)
    watch.after_epoch()
    watch._optimizer = sgd(model)
    train(model, watch._optimizer, watch=watch, num_epochs=2)
    assert watch.findings == []


# --- What moves --------------------------------------------------------------------------------


def test_parameters_that_do_not_move_are_told_with_the_cause():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.spare = network(), nn.Linear(2, 2)

        def forward(self, images):
            return self.body(images)

    model = Unused()
    optimizer = torch.optim.SGD(
        [
            {"params": [*model.body[3:].parameters(), *model.spare.parameters()], "lr": 0.05},
            {"params": model.body[1].parameters(), "lr": 0.0},
        ]
    )
    (found,) = train(model, optimizer).findings
    assert (found.check, found.severity) == ("not-moving", "warning")
    assert found.text == (
        "5 of 10 trainable parameters did not move in 38 steps: "
        "body.0.weight (not in the optimizer); "
        "body.1.weight, body.1.bias (its rate is 0); "
        "spare.weight, spare.bias (it gets no gradient)"
    )


def test_steps_below_the_precision_are_told_as_such():
    model = network()
    (found, *_) = train(model, sgd(model, 1e-14)).findings
    assert found.check == "not-moving"
    assert "(steps at a rate of 1e-14 are below its precision)" in found.text


def test_statistics_of_a_frozen_batchnorm_that_follow_the_data_are_told_at_once():
    model = network()
    for part in model[:9]:
        part.requires_grad_(False)
    watch = train(model, sgd(model))
    (found,) = [item for item in watch.findings if item.check == "frozen-moves"]
    assert found.text == (
        "6 frozen tensors changed by step 1: 1.running_mean, 1.running_var, "
        "1.num_batches_tracked and 3 more"
    )
    assert "torchkeep.training.freeze" in found.advice


def test_a_single_element_of_a_frozen_weight_that_changes_is_found_when_the_epoch_ends():
    model = network()
    freeze(model, except_=["9"])

    def disturb(model):
        model[3].weight.data.view(-1)[7] += 1e-6

    watch = train(model, sgd(model), hook=disturb)
    assert [item.text for item in watch.findings] == [
        "1 frozen tensor changed by step 38: 3.weight"
    ]


# --- Gradients and losses ----------------------------------------------------------------------


def test_a_rate_that_is_far_too_high_is_noticed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    watch = train(model, sgd(model, 30.0), num_epochs=2)
    found = checks(watch.findings)
    assert "exploding-gradient" in found or "loss-values" in found or "loss-not-falling" in found


def test_gradients_that_explode_are_told_with_what_they_were():
    model = network()
    optimizer = sgd(model)
    watch = Watch(model, optimizer, 10, every=1)
    images, labels = batch()
    for step in range(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels) * (1 if step < 7 else 1e4)
        loss.backward()
        found = watch.after_backward()
        assert bool(found) == (step == 7)
        optimizer.step()
        watch.after_step(loss.item() if step < 7 else 2.0)
    assert checks(found) == ["exploding-gradient"]
    assert found[0].text.startswith("step 8: the norm of all gradients is ")
    assert ", and was " in found[0].text
    assert "clip_grad_norm_" in found[0].advice


def test_gradients_that_vanish_while_the_loss_is_high_are_told():
    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)
            nn.init.constant_(self.head.bias, 100.0)

        def forward(self, images):
            return torch.sigmoid(self.head(images.flatten(1)))

    model = Saturated()
    (found, *_) = train(model, sgd(model)).findings
    assert found.check == "vanishing-gradient"
    assert "nothing moves any more" in found.text


def test_infinite_gradients_are_an_error_unless_a_scaler_deals_with_them():
    model = network()
    watch = Watch(model, sgd(model), 10, every=1)
    for item in model.parameters():
        item.grad = torch.full_like(item, torch.inf)
    assert watch.after_backward(scale=65536.0) == []
    (found,) = watch.after_backward()
    assert found.text == (
        "step 2: 8 gradients not finite, of 0.weight, 1.weight, 1.bias and 5 more"
    )


def test_scaled_gradients_are_looked_at_unscaled():
    model = network()
    watch = Watch(model, sgd(model), 10, every=1)
    for item in model.parameters():
        item.grad = torch.full_like(item, 65536.0)
    assert watch.after_backward(scale=65536.0) == []
    (found,) = watch.after_backward()
    assert found.check == "exploding-gradient"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_at_once(bad):
    model = network()
    watch = Watch(model, sgd(model), 10)
    assert watch.after_step(2.25) == []
    (found,) = watch.after_step(bad)
    assert (found.check, found.severity) == ("loss-values", "error")
    assert found.text == f"the loss of step 2 is {bad}, after 2.25"
    assert "last checkpoint" in found.advice


def test_a_loss_on_its_device_is_looked_at_later_and_told_with_its_step():
    model = network()
    watch = Watch(model, sgd(model), 10)
    losses = [2.0, 1.9, 1.8, float("nan"), 1.7, 1.6, 1.5]
    found = [item for loss in losses for item in watch.after_step(torch.tensor(loss))]
    assert [item.text for item in found] == ["the loss of step 4 is nan, after 1.8"]


def test_a_loss_that_does_not_fall_is_told():
    model = network()
    images, labels = batch(640)
    generator = torch.Generator().manual_seed(0)
    shuffled = labels[torch.randperm(640, generator=generator)]
    batches = list(zip(images.split(32), shuffled.split(32), strict=True))
    watch = train(model, sgd(model, 1e-5), num_epochs=2, batches=batches)
    (found,) = [item for item in watch.findings if item.check == "loss-not-falling"]
    assert found.text.startswith("the loss does not fall: 2.")
    assert found.text.endswith("(ln(10) = 2.3)")
    assert "find_learning_rate" in found.advice


def test_accuracy_of_guessing_is_told():
    model = network()
    watch = Watch(model, sgd(model), 10)
    ours, others = loaders()
    moved = [(images, (labels + 1) % 10) for images, labels in others]
    found = []
    for _ in range(3):
        for images, labels in ours:
            loss = functional.cross_entropy(model(images), labels)
            watch._optimizer.zero_grad()
            loss.backward()
            watch._optimizer.step()
            watch.after_step(loss.item())
        found += watch.after_epoch(evaluate(model, moved))
    (told, _) = found
    assert checks(found) == ["chance", "validation-loss"]
    assert told.text.startswith("the accuracy in validation is ")
    assert told.text.endswith("% of 597 samples, and guessing among 10 classes gives 10.0%")
    assert "one list of class names" in told.advice


def test_overfitting_is_told_with_the_epoch_to_go_back_to():
    images, labels = loaders()[0].dataset.tensors
    labels = labels.clone()
    generator = torch.Generator().manual_seed(0)
    labels[:30] = labels[torch.randperm(30, generator=generator)]
    batches = [(images[:60], labels[:60])] * 10
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    watch = train(model, sgd(model), num_epochs=12, batches=batches)
    (found,) = [item for item in watch.findings if item.check == "overfitting"]
    least = min(item.validation_loss for item in watch.epochs)
    assert found.text.startswith(f"the validation loss grew from {least:.3g} after epoch ")
    assert "Keep the weights of epoch" in found.advice


def test_what_was_found_is_told_once():
    model = network()
    for part in model[:9]:
        part.requires_grad_(False)
    watch = train(model, sgd(model), num_epochs=3)
    assert checks(watch.findings).count("frozen-moves") == 1


def test_a_training_that_is_gone_on_with_is_judged_by_all_of_its_epochs():
    model = network()
    first = train(model, sgd(model), num_epochs=2)
    again = Watch(model, sgd(model), 10, epochs=first.epochs, num_steps=76, told=[])
    train(model, again._optimizer, watch=again, num_epochs=2)
    assert again.findings == []
    assert again.epochs[:2] == first.epochs
    assert len(again.epochs) == 4
    slow = train(model, sgd(model, 1e-9), watch=_stuck(model), num_epochs=1)
    assert checks(slow.findings) == ["loss-not-falling"]


def _stuck(model: nn.Module) -> Watch:
    """Go on with a training whose loss was about as low as that of guessing."""
    for item in model[-1].parameters():
        nn.init.zeros_(item)
    for part in model[:9]:
        part.requires_grad_(False)
    freeze(model, except_=["9"])
    early = Epoch(log(10), log(10), 0.5, 597)
    return Watch(model, sgd(model, 1e-6), 10, epochs=[early, early], num_steps=200)


def test_what_was_found_before_a_training_was_broken_off_is_not_told_again():
    model = network()
    for part in model[:9]:
        part.requires_grad_(False)
    first = train(model, sgd(model), num_epochs=1)
    assert "frozen-moves" in checks(first.findings)
    told = [Finding("chance", "warning", "of another epoch", "")]
    again = Watch(model, sgd(model), 10, num_steps=38, told=told)
    assert again._new([Finding("chance", "warning", "as ever", "")]) == []


def test_behind_weights_of_zero_nothing_need_move_in_the_first_step():
    model = network()
    nn.init.zeros_(model[-1].weight)  # so that no gradient passes
    watch = train(model, sgd(model), batches=[batch(32)])
    assert watch.findings == []
    watch = train(model, sgd(model, 0.0), batches=[batch(32)])
    assert checks(watch.findings) == ["not-moving"]


def test_a_validation_loss_far_above_that_of_guessing_is_told():
    close, far = Epoch(0.3, 6.0, 0.4, 100), Epoch(0.3, 7.0, 0.4, 100)
    assert far_apart(close, 10) == far_apart(Epoch(0.9, 7.0, 0.4, 100), 10) == []
    (found,) = far_apart(far, 10)
    assert found.text == (
        "the loss is 7 in validation and 0.3 in training, and that of guessing among 10 classes "
        "is 2.3"
    )
    assert "BatchNorm's statistics may lag" in found.advice
