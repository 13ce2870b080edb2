"""An optimizer's state goes to the parameters of the same names, and missing ones are added."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.checkpointing.state.capturing import capture, restore
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import CheckpointProblem


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))


def grown(model: nn.Sequential) -> torch.optim.AdamW:
    """Return an optimizer that got its groups one by one, and took steps in between."""
    optimizer = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    take_step(model, optimizer)
    for layer in (1, 0):
        optimizer.add_param_group({"params": model[layer].parameters(), "lr": 0.01 * layer})
        take_step(model, optimizer)
    return optimizer


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def test_groups_that_an_optimizer_gained_are_added_by_name():
    model = network()
    state = capture({"model": model, "optimizer": grown(model)}, rng=False)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(other[2].parameters(), lr=0.5)
    objects = {"model": nn.DataParallel(other), "optimizer": optimizer}
    restore(state, objects)
    layers = [other[2], other[1], other[0]]
    assert [group["params"] for group in optimizer.param_groups] == [
        list(layer.parameters()) for layer in layers
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.0]
    assert fingerprint(capture(objects, rng=False)) == fingerprint(state)


def test_parameters_that_a_group_gained_are_added_by_name():
    model = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["params"].extend(model[0].parameters())
    take_step(model, optimizer)
    state = capture({"model": model, "optimizer": optimizer}, rng=False)
    again = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    restore(state, {"model": model, "optimizer": again})
    assert fingerprint(capture({"model": model, "optimizer": again}, rng=False)) == fingerprint(
        state
    )


def test_the_program_may_add_a_restored_group_once_more():
    """A resumed epoch runs its body again from the start, where the group was added."""
    model = network()
    objects = {"model": model, "optimizer": grown(model)}
    state = capture(objects, rng=False)
    optimizer = objects["optimizer"] = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    restore(state, objects)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 7.0})
    optimizer.add_param_group({"params": list(model[1].named_parameters())})
    assert fingerprint(capture(objects, rng=False)) == fingerprint(state)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[0].parameters()})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.3})
    assert optimizer.param_groups[3]["lr"] == 0.3


def test_after_a_second_restore_nothing_may_be_added_twice():
    model = network()
    objects = {"model": model, "optimizer": grown(model)}
    state = capture(objects, rng=False)
    optimizer = objects["optimizer"] = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    restore(state, objects)
    restore(state, objects)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[0].parameters()})


def test_groups_are_added_to_an_optimizer_that_knows_names():
    model = network()
    optimizer = torch.optim.SGD(model[2].named_parameters("2"), lr=0.1)
    optimizer.add_param_group({"params": list(model[0].named_parameters("0"))})
    state = capture({"model": model, "optimizer": optimizer}, rng=False)
    again = torch.optim.SGD(model[2].named_parameters("2"), lr=0.1)
    restore(state, {"model": model, "optimizer": again})
    assert again.param_groups[1]["param_names"] == ["0.weight", "0.bias"]


def test_parameters_of_the_same_shape_are_not_mistaken_for_each_other():
    """PyTorch goes by position, and would give each layer the moments of the other."""
    model = network()
    optimizer = torch.optim.SGD([model[0].weight, model[1].weight], lr=0.1, momentum=0.9)
    state = capture({"model": model, "optimizer": optimizer})
    turned = torch.optim.SGD([model[1].weight, model[0].weight], lr=0.1, momentum=0.9)
    with pytest.raises(CheckpointProblem, match="the same shapes for other parameters"):
        restore(state, {"model": model, "optimizer": turned})


def test_other_groups_than_those_at_the_end_are_refused():
    model = network()
    state = capture({"model": model, "optimizer": grown(model)})
    both = [*model[2].parameters(), *model[1].parameters()]
    with pytest.raises(CheckpointProblem, match=r"groups of \[2, 2, 2\] parameters, .*of \[4\]"):
        restore(state, {"model": model, "optimizer": torch.optim.AdamW(both)})
    fewer = capture({"model": model, "optimizer": torch.optim.AdamW(model[2].parameters())})
    with pytest.raises(CheckpointProblem, match=r"groups of \[2\] parameters, .*of \[2, 2, 2\]"):
        restore(fewer, {"model": model, "optimizer": grown(model)})


def test_a_group_of_unknown_parameters_cant_be_added():
    model = network()
    state = capture({"optimizer": grown(model)})
    with pytest.raises(CheckpointProblem, match=r"groups of \[2, 2, 2\] parameters, .*of \[2\]"):
        restore(state, {"optimizer": torch.optim.AdamW(model[2].parameters())})


def test_a_state_without_names_goes_by_position():
    model = network()
    objects = {"model": model, "optimizer": grown(model)}
    state = capture(objects, rng=False)
    del state["objects"]["optimizer"]["state"]["names"]
    restore(state, objects)


def test_a_restore_leaves_no_default_behind():
    """PyTorch adds `differentiable` to the defaults of an optimizer that has no such option."""

    class Plain(torch.optim.Optimizer):
        def __init__(self, parameters) -> None:
            super().__init__(parameters, {"lr": 0.1})

    model = network()
    objects = {"model": model, "optimizer": Plain(model[2].parameters())}
    restore(capture(objects), objects)
    objects["optimizer"].add_param_group({"params": model[0].parameters()})
    assert objects["optimizer"].param_groups[1].keys() == {"lr", "params"}


def test_staged_unfreezing_with_an_optimizer_of_the_head():
    model = network()
    model[:2].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    take_step(model, optimizer)
    model[1].requires_grad_(True)
    optimizer.add_param_group({"params": model[1].parameters()})
    take_step(model, optimizer)
    state = capture({"model": model, "optimizer": optimizer}, rng=False)

    other = network()
    other[:2].requires_grad_(False)
    again = torch.optim.AdamW(other[2].parameters(), lr=0.1)
    restore(state, {"model": other, "optimizer": again})
    assert [layer.weight.requires_grad for layer in other] == [False, True, True]
    take_step(model, optimizer)
    take_step(other, again)
    expected = capture({"model": model, "optimizer": optimizer}, rng=False)
    assert fingerprint(capture({"model": other, "optimizer": again}, rng=False)) == fingerprint(
        expected
    )
