"""A model and its optimizer before the first step."""

from __future__ import annotations

import copy
import random

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from torchkeep.errors import WrongArgument
from torchkeep.tensors import same_bits
from torchkeep.training import freeze, replace_head, trainable
from torchkeep.training.diagnosis import (
    examine_start,
    find_learning_rate,
    gradients,
    initial_loss,
    modes,
    optimizer_parameters,
    outputs,
    overfit_one_batch,
    trainable_parameters,
)
from training.diagnosis.cases import CLASSES, batch, checks, network


def adam(model):
    return torch.optim.Adam(trainable(model), lr=1e-3)


def trained(num_steps=20):
    """Return a network that was trained a little, and its optimizer."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = batch()
    for _ in range(num_steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, optimizer


# --- Healthy -----------------------------------------------------------------------------------


def test_a_fresh_network_and_its_optimizer_give_no_finding():
    for seed in range(5):
        model = network(seed)
        assert examine_start(model, adam(model), *batch(), CLASSES) == []


def test_a_frozen_network_with_a_fresh_head_gives_no_finding():
    model, _ = trained()
    replace_head(model, 10)
    freeze(model, except_=["9"])
    assert examine_start(model, adam(model), *batch(), CLASSES) == []


def test_a_head_of_zeros_is_a_good_start():
    model = network()
    nn.init.zeros_(model[9].weight)
    assert examine_start(model, adam(model), *batch(), CLASSES) == []


def test_residual_branches_that_begin_with_zeros_are_a_good_start():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
            )
            self.norm = nn.BatchNorm2d(1)
            nn.init.zeros_(self.norm.weight)

        def forward(self, images):
            return images + self.norm(self.branch(images))

    torch.manual_seed(0)
    model = nn.Sequential(Residual(), Residual(), nn.Flatten(), nn.Linear(64, 10))
    images, labels = batch()
    first = torch.autograd.grad(
        functional.cross_entropy(model(images), labels), model[0].branch[0].weight
    )
    assert not first[0].any()
    assert gradients(model, images, labels) == []


# --- Nothing changes ---------------------------------------------------------------------------


def everything(model, optimizer):
    """Return all that could have changed, as a flat dict of tensors, and the rest as text."""
    tensors = {f"model.{name}": item.clone() for name, item in model.state_dict().items()}
    for name, item in model.named_parameters():
        tensors[f"grad.{name}"] = item.grad.clone()
    for number, state in optimizer.state_dict()["state"].items():
        for name, item in state.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(item).clone()
    tensors["rng"] = torch.get_rng_state()
    rest = repr(
        (
            optimizer.state_dict()["param_groups"],
            [module.training for module in model.modules()],
            [item.requires_grad for item in model.parameters()],
            [id(item) for item in model.parameters()],
            random.getstate(),
            [str(part) for part in numpy.random.get_state()],
        )
    )
    return tensors, rest


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "look",
    [
        lambda model, optimizer: examine_start(model, optimizer, *batch(), CLASSES),
        lambda model, optimizer: gradients(model, *batch()),
        lambda model, optimizer: outputs(model, batch()[0], 10),
        lambda model, optimizer: initial_loss(model, *batch(), 10),
        lambda model, optimizer: overfit_one_batch(model, *batch(16)),
        lambda model, optimizer: find_learning_rate(model, optimizer, [batch()], num_steps=20),
    ],
)
def test_what_runs_the_model_leaves_everything_as_it_was_bit_for_bit(look, mode):
    model, optimizer = trained()
    model.train(mode)
    before, others = everything(model, optimizer)
    look(model, optimizer)
    after, others_after = everything(model, optimizer)
    assert before.keys() == after.keys()
    assert [name for name in before if not same_bits(before[name], after[name])] == []
    assert others_after == others


def test_a_model_that_cannot_be_copied_is_an_error_that_says_so():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle 'lock' object")

    with pytest.raises(WrongArgument, match=r"deep copy, and copy\.deepcopy fails: cannot pickle"):
        gradients(Stubborn(2, 2), torch.ones(2, 2), torch.tensor([0, 1]))


# --- Modes and parameters ----------------------------------------------------------------------


def test_a_model_in_evaluation_mode_is_told():
    (found,) = modes(network().eval())
    assert (found.check, found.severity) == ("eval-mode", "warning")
    assert "Dropout and BatchNorm work as in prediction" in found.text
    assert modes(network()) == []


def test_a_batchnorm_that_is_frozen_by_its_parameters_only_is_told():
    model = network()
    model[1].requires_grad_(False)
    (found,) = modes(model)
    assert found.text == "the statistics of 1 BatchNorm with frozen parameters follow the data: 1"
    assert "torchkeep.training.freeze" in found.advice
    model = network()
    freeze(model, except_=["9"])
    assert modes(model) == []


def test_a_batchnorm_that_sleeps_while_its_parameters_train_is_told():
    model = network()
    model[4].eval()
    (found,) = modes(model)
    assert found.text == "in evaluation mode, with trainable parameters: 1 BatchNorm, 4"


def test_a_model_of_which_nothing_is_trainable_is_an_error():
    model = network().requires_grad_(False)
    (found,) = trainable_parameters(model)
    assert (found.severity, found.text) == (
        "error",
        "none of the model's 8 parameters is trainable",
    )
    assert trainable_parameters(network()) == []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "no-trainable" in checks(examine_start(model, optimizer, *batch(), 10))


def test_a_head_that_was_replaced_after_the_optimizer_was_made_is_found():
    model = network(classes=7)
    optimizer = adam(model)
    replace_head(model, 10)
    missing, foreign = optimizer_parameters(model, optimizer)
    assert missing.text == (
        "2 of 8 trainable parameters are not in the optimizer: 9.weight, 9.bias"
    )
    assert foreign.text == (
        "the optimizer has 2 parameters that the model lacks, of shape [7, 128], [7]"
    )
    assert {missing.severity, foreign.severity} == {"error"}
    assert optimizer_parameters(model, adam(model)) == []


def test_a_frozen_parameter_in_the_optimizer_is_a_note():
    model = network()
    optimizer = adam(model)
    freeze(model, except_=["9", "4"])
    (found,) = optimizer_parameters(model, optimizer)
    assert found.severity == "note"
    assert found.text == (
        "the optimizer has 4 frozen parameters: 0.weight, 1.weight, 1.bias and 1 more"
    )


def test_a_wrapped_model_is_looked_into():
    model = network()
    wrapped = nn.DataParallel(model)
    assert examine_start(wrapped, adam(model), *batch(), CLASSES) == []


# --- Outputs and loss --------------------------------------------------------------------------


def test_a_wrong_number_of_outputs_is_an_error():
    model = network(classes=1000)
    (found,) = outputs(model, batch()[0], CLASSES)
    assert found.text == "the model has 1,000 outputs for 10 classes"
    assert "replace_head(model, 10)" in found.advice
    assert checks(examine_start(model, adam(model), *batch(), CLASSES)) == ["num-outputs"]


def test_numbers_of_classes_with_gaps_are_an_error():
    numbers = {name: label + 1 for label, name in enumerate(CLASSES)}
    (found,) = outputs(network(), batch()[0], numbers)
    assert found.text == "class_to_idx numbers 10 classes from 1 to 10"
    assert outputs(network(), batch()[0], dict(zip(CLASSES, range(10), strict=True))) == []


def test_outputs_that_are_no_tensor_or_no_matrix_are_errors():
    class Pair(nn.Linear):
        def forward(self, images):
            return super().forward(images), None

    (found,) = outputs(Pair(2, 2), torch.ones(3, 2), 2)
    assert found.text == "the model returns a tuple, and no tensor"
    (found,) = outputs(network()[:3], batch(4)[0], 10)
    assert found.text == "the outputs have the shape [4, 16, 8, 8] and not [4, 10]"


def test_outputs_of_nan_are_an_error():
    model = network()
    model[9].weight.data[0, 0] = torch.nan
    (found,) = outputs(model, batch(8)[0], 10)
    assert found.text == "8 of 80 outputs are NaN or infinite"


def test_outputs_that_are_always_the_same_are_an_error():
    model = network()
    model[4].bias.data.fill_(-100)  # nothing comes through the ReLU behind it
    (found,) = outputs(model, batch(8)[0], 10)
    assert (found.check, found.severity) == ("outputs", "error")
    assert found.text == "the outputs are the same for all 8 samples, which differ"
    assert outputs(model, batch(1)[0].repeat(4, 1, 1, 1), 10) == []


def test_a_loss_far_above_that_of_guessing_is_a_warning():
    model = network()
    model[9].weight.data.mul_(50)
    (found,) = initial_loss(model, *batch(), 10)
    assert found.severity == "warning"
    assert found.text.startswith("the loss at the start is ")
    assert found.text.endswith("and ln(10) = 2.3 is expected")
    assert "is the head fresh" in found.advice.lower()


def test_a_loss_that_is_a_sum_is_told_as_one():
    def total(made, labels):
        return functional.cross_entropy(made, labels, reduction="sum")

    (found,) = initial_loss(network(), *batch(), 10, loss_fn=total)
    assert found.advice.startswith("It is a sum over the batch")


def test_a_loss_of_nan_is_told():
    (found,) = initial_loss(network(), batch()[0] * torch.nan, batch()[1], 10)
    assert found.text.startswith("the loss at the start is nan")


def test_a_loss_far_below_that_of_guessing_is_a_note():
    model, optimizer = trained(100)
    (found,) = initial_loss(model, *batch(), 10)
    assert found.severity == "note"
    assert "already trained" in found.advice
    assert examine_start(model, optimizer, *batch(), CLASSES, fresh_head=False) == []


# --- Gradients ---------------------------------------------------------------------------------


def test_a_part_that_is_cut_off_gets_no_gradient():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = network()[:9], nn.Linear(128, 10)

        def forward(self, images):
            return self.head(self.features(images).detach())

    (found,) = gradients(Cut(), *batch())
    assert (found.check, found.severity) == ("no-gradient", "warning")
    assert found.text.startswith("6 of 8 trainable parameters get no gradient")
    assert "features.0.weight, features.1.weight" in found.text


def test_gradients_of_zero_are_found_whatever_comes_behind():
    model = network()
    model[4].bias.data.fill_(-100)
    found = gradients(model, *batch())
    (zero,) = [item for item in found if item.check == "zero-gradient"]
    assert zero.text == (
        "the gradients of 7 of 8 trainable parameters are all zero, also after 2 small steps: "
        "0.weight, 1.weight, 1.bias and 4 more"
    )
    assert "dead ReLUs" in zero.advice


def test_dead_units_are_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    model[1].bias.data[:95] = -100
    (found,) = gradients(model, *batch())
    assert found.check == "dead-units"
    assert found.text == (
        "in 1 layer more than 90% of the units get no gradient from any sample: in 1.weight 95 "
        "of 100"
    )


def test_exploding_gradients_are_told_with_their_norm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    (found,) = gradients(model, batch()[0] * 1e5, batch()[1])
    assert (found.check, found.severity) == ("exploding-gradient", "warning")
    assert found.text.startswith("the gradients' norm is ")
    assert "the largest is that of 1.weight" in found.text or "3.weight" in found.text
    assert "Normalise inputs" in found.advice


def test_gradients_that_vanish_in_a_deep_network_of_sigmoids_are_told():
    torch.manual_seed(0)
    deep = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.Sigmoid())]
    model = nn.Sequential(nn.Flatten(), *deep, nn.Linear(64, 10))
    (found,) = gradients(model, *batch())
    assert found.check == "vanishing-gradient"
    assert "that of 1.weight is" in found.text
    assert "ReLU instead of sigmoid" in found.advice


def test_gradients_of_nan_are_an_error():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, images):
            return self.head(images.flatten(1) * 0).sub(self.head.bias).sqrt()

    (found,) = gradients(Root(), *batch())
    assert found.check == "gradient-values"
    assert "with NaN or infinity in the first step: head.weight" in found.text


# --- One batch ---------------------------------------------------------------------------------


def test_a_batch_is_learnt_by_heart():
    result = overfit_one_batch(network(), *batch(16))
    assert result.findings == ()
    assert result.losses[-1] <= result.losses[0] / 2
    assert result.rate == 1e-3


def test_a_batch_is_learnt_by_heart_by_a_head_alone():
    model = network()
    freeze(model, except_=["9"])
    result = overfit_one_batch(model, *batch(16))
    assert result.findings == ()


def test_labels_that_contradict_each_other_cannot_be_learnt():
    images = batch(1)[0].repeat(16, 1, 1, 1)
    result = overfit_one_batch(network(), images, batch(16)[1], num_steps=20)
    (found,) = result.findings
    assert (found.check, found.severity) == ("one-batch", "error")
    assert found.text.startswith("the loss on one batch of 16 samples did not halve in 20 steps")
    assert f"{result.losses[0]:.3g}, " in found.text
    assert found.text.endswith(f", {result.losses[-1]:.3g}")
    assert "side by side" in found.advice


def test_a_dead_network_cannot_learn_a_batch():
    model = network()
    model[4].bias.data.fill_(-100)
    assert checks(overfit_one_batch(model, *batch(16), num_steps=10).findings) == ["one-batch"]


def test_one_batch_needs_something_that_trains():
    with pytest.raises(WrongArgument, match=r"nothing of the model is trainable\. Unfreeze"):
        overfit_one_batch(network().requires_grad_(False), *batch(16))


def test_a_copy_of_a_frozen_network_stays_frozen():
    model = network()
    freeze(model, except_=["9"])
    copied = copy.deepcopy(model).train()
    assert not copied[1].training
    assert copied[1].train.args == (copied[1],)
