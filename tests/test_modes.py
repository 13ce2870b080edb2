"""modes.py: modes are put back as they were, module by module."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import torchkeep
from torchkeep import modes, training
from torchkeep.modes import evaluating
from torchkeep.training import freeze


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net[1].eval()
    return net


def flags(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


BEFORE = [True, True, False, True]


def test_there_is_one_evaluating_under_all_its_names():
    assert torchkeep.evaluating is training.evaluating is evaluating
    assert training.training is modes.training


# --- Going and coming back ---------------------------------------------------------------------


def test_evaluating_switches_everything_off_and_back():
    net = model()
    with evaluating(net):
        assert flags(net) == [False] * 4
        assert not net(torch.ones(2, 2)).requires_grad
    assert flags(net) == BEFORE
    assert torch.is_grad_enabled()


def test_training_switches_everything_on_and_back():
    net = model().eval()
    with torch.no_grad(), modes.training(net):
        assert flags(net) == [True] * 4
        assert net(torch.ones(2, 2)).requires_grad
    assert flags(net) == [False] * 4


@pytest.mark.parametrize("enter", [evaluating, modes.training])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_modes_are_put_back_after_an_error(enter, error):
    net = model()
    with pytest.raises(error), enter(net):
        raise error
    assert flags(net) == BEFORE
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_one_inside_the_other_comes_back_step_by_step():
    net = model()
    with evaluating(net):
        with modes.training(net):
            assert flags(net) == [True] * 4
            assert net(torch.ones(2, 2)).requires_grad
            with evaluating(net):
                assert flags(net) == [False] * 4
            assert flags(net) == [True] * 4
        assert flags(net) == [False] * 4
        assert not torch.is_grad_enabled()
    assert flags(net) == BEFORE


# --- Gradients ---------------------------------------------------------------------------------


def test_what_was_computed_while_evaluating_can_be_used_for_training():
    net = model()
    with evaluating(net):
        features = net(torch.ones(2, 2))
    net[0](features).sum().backward()


def test_inference_mode_is_used_if_it_is_asked_for():
    net = model()
    with evaluating(net, inference=True):
        assert net(torch.ones(2, 2)).is_inference()
    assert not torch.is_inference_mode_enabled()
    with evaluating(net):
        assert not net(torch.ones(2, 2)).is_inference()


def test_training_records_gradients_even_within_inference_mode():
    net = model()
    with evaluating(net, inference=True), modes.training(net):
        net(torch.ones(2, 2)).sum().backward()
    assert net[0].weight.grad is not None


def test_another_thread_keeps_recording_gradients():
    net, seen = model(), []
    with evaluating(net):
        thread = threading.Thread(target=lambda: seen.append(torch.is_grad_enabled()))
        thread.start()
        thread.join()
        assert not torch.is_grad_enabled()
    assert seen == [True]


# --- Models that change, and odd ones ----------------------------------------------------------


def test_modules_that_left_or_came_meanwhile_have_their_own_mode():
    net = model()
    left, replaced = net[2], net[1]
    with evaluating(net):
        del net[2]
        net[1] = nn.Identity()
        net.append(nn.Dropout().eval())
    assert (left.training, replaced.training) == (True, False)
    assert (net[0].training, net[2].training) == (True, False)


def test_a_frozen_norm_stays_asleep_through_both_modes():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(net, except_=["0"])
    for enter in (modes.training, evaluating):
        with enter(net):
            assert not net[1].training
            net(torch.ones(4, 2))
        assert flags(net) == [True, True, False]
    assert net[1].num_batches_tracked == 0


class Merging(nn.Module):
    """A layer that merges its two weights for evaluation, as LoRA does."""

    def __init__(self):
        super().__init__()
        self.is_merged = False

    def train(self, mode=True):
        self.is_merged = not mode
        return super().train(mode)


def test_what_an_overridden_train_does_besides_is_undone_as_well():
    net = nn.Sequential(Merging(), nn.Dropout())
    with evaluating(net):
        assert net[0].is_merged
    assert not net[0].is_merged
    assert flags(net) == [True] * 3


class Stubborn(nn.Module):
    """A module that can't be switched."""

    def __init__(self):
        super().__init__()
        self.part = nn.Dropout()

    def train(self, mode=True):
        self.part.training = mode
        raise NotImplementedError("no modes here")


def test_a_model_that_refuses_to_be_switched_is_left_as_it_was():
    net = Stubborn()
    with pytest.raises(NotImplementedError, match="no modes here"), evaluating(net):
        pytest.fail("the block must not run")
    assert flags(net) == [True, True]
    assert torch.is_grad_enabled()


def test_a_module_in_two_places_is_put_back_once():
    shared = nn.Dropout().eval()
    net = nn.Sequential(shared, nn.Sequential(shared))
    with modes.training(net):
        assert shared.training
    assert flags(net) == [True, False, True]


def wrapped_models():
    yield "DataParallel", nn.DataParallel
    yield "torch.compile", lambda net: torch.compile(net, backend="eager")
    yield (
        "DataParallel in torch.compile",
        lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    )
    yield "AveragedModel", torch.optim.swa_utils.AveragedModel


@pytest.mark.parametrize("wrap", [pytest.param(wrap, id=name) for name, wrap in wrapped_models()])
def test_a_wrapped_model_is_switched_to_its_core(wrap):
    wrapped = wrap(model())
    core = next(module for module in wrapped.modules() if type(module) is nn.Sequential)
    before = flags(wrapped)
    with evaluating(wrapped):
        assert not any(flags(wrapped))
        assert not core(torch.ones(2, 2)).requires_grad
    assert flags(wrapped) == before
    assert flags(core) == BEFORE


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_switched_and_put_back():
    net = torch.jit.script(model())
    with evaluating(net):
        assert not any(flags(net))
    assert flags(net) == BEFORE
