"""Fewer channels in every layer of a network: smaller, faster, and to be retrained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from torchkeep.errors import WrongArgument
from torchkeep.matching.patterns import covers
from torchkeep.modes import evaluating
from torchkeep.outputs import as_arguments, named_tensors, place_of
from torchkeep.training.pruning.channels import Importance, attention_of, remove_channels
from torchkeep.training.pruning.costs import Cost, Latency, compare_latency, cost_of
from torchkeep.training.pruning.structure import (
    SlimStructure,
    describe_structure,
    restructure,
)
from torchkeep.training.pruning.widths import own_tensors

Evaluate = Callable[[nn.Module], float]
"""From a network to how good it is, such as its accuracy."""


@dataclass(frozen=True, slots=True)
class SlimReport:
    """What slimming did to a network."""

    ratio: float
    """The share of channels that was asked to go."""
    structure: SlimStructure
    """The widths that are left, to be saved with the weights."""
    before: Cost
    """What the network cost."""
    after: Cost
    """What it costs now, for the same inputs."""
    latency: Latency
    """How long both take for the inputs."""
    score_before: float | None
    """What `evaluate` gave for the network as it was; None without it."""
    score_after: float | None
    """What it gives now, before any retraining."""


def slim(
    model: nn.Module,
    ratio: float,
    *,
    inputs: Any,
    keep: Iterable[str] = (),
    importance: Importance = "group",
    multiple_of: int = 1,
    evaluate: Evaluate | None = None,
    runs: int = 9,
) -> SlimReport:
    """Take a share of the channels out of a network, and return what that changed.

    The layers really become narrower, and the least important channels go, together with all that
    belongs to them. What the outputs come from keeps its outputs, and attention its width: of a
    transformer the layers between are slimmed. The network is worse afterwards and has to be
    retrained, like any network; make its optimizer after slimming. Half of the channels are about
    three quarters of a convolutional network's parameters.

    The slimmed copy is checked before the network is changed: rebuilt from `structure`, it gives
    the same outputs bit for bit, of the shapes that they had.

    Args:
        model: the network, changed in place. Modes and `requires_grad` stay as they are.
        ratio: the share of each layer's channels that goes, between 0 and 1.
        inputs: what the network is called with, on its device: a tensor `[n, channels, height,
            width]`, a tuple of arguments, or a dict of named ones. Sizes and times are for these.
        keep: names of modules that keep their outputs, or patterns such as `layer4.*`.
        importance: `group` for the norm of all that belongs to a channel, in every layer that
            shares it; `magnitude` for the first layer's weights alone.
        multiple_of: what the widths that are left are a multiple of, such as 8 for a GPU.
        evaluate: is called with the network before and after, such as to measure its accuracy.
        runs: how often each of the two is timed.

    Raises:
        WrongArgument: an argument is of no use, the network can't be run on the inputs or can't be
            slimmed, or nothing of it could be. The network is unchanged.
        MissingExtra: Torch-Pruning is not installed.
    """
    _check_arguments(ratio, importance, multiple_of, runs)
    kept = _kept(model, tuple(keep))
    _check_network(model)
    expected = _outputs(model, inputs)
    _refuse_unreached(model, inputs)
    original, slimmed = _copied(model), _copied(model)
    remove_channels(
        slimmed.eval(),
        ratio,
        inputs=inputs,
        kept=[slimmed.get_submodule(name) for name in kept],
        importance=importance,
        multiple_of=multiple_of,
    )
    structure = describe_structure(original, slimmed)
    if not structure.layers:
        raise WrongArgument(
            f"nothing of this {type(model).__name__} can be slimmed by {ratio}",
            advice="Take a larger ratio, or keep less.",
        )
    trial = _copied(model)
    _take_over(trial, structure, slimmed)
    _check_outputs(slimmed, trial, inputs, expected)
    before, after = cost_of(original, inputs), cost_of(trial, inputs)
    latency = compare_latency(original, trial, inputs, runs=runs)
    score_before = None if evaluate is None else float(evaluate(original))
    score_after = None if evaluate is None else float(evaluate(trial))
    _take_over(model, structure, slimmed)
    return SlimReport(ratio, structure, before, after, latency, score_before, score_after)


def _take_over(model: nn.Module, structure: SlimStructure, slimmed: nn.Module) -> None:
    """Give a network the structure and the values of its slimmed copy."""
    restructure(model, structure)
    others = dict(slimmed.named_modules())
    with torch.no_grad():
        for path, module in model.named_modules():
            tensors = own_tensors(others[path])
            for name, tensor in own_tensors(module).items():
                tensor.grad = None
                tensor.copy_(tensors[name])


# --- Checks ------------------------------------------------------------------------------------


def _check_arguments(ratio: float, importance: str, multiple_of: int, runs: int) -> None:
    if not 0 < ratio < 1:
        raise WrongArgument(
            f"the share of channels that goes is between 0 and 1, not {ratio}",
            advice="0.5 takes half of each layer's channels.",
        )
    if importance not in ("group", "magnitude"):
        raise WrongArgument(f"importance is 'group' or 'magnitude', not {importance!r}")
    if multiple_of < 1 or runs < 1:
        raise WrongArgument(f"multiple_of and runs are from 1 on, not {min(multiple_of, runs)}")


def _kept(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(covers(pattern, name) for name in names):
            raise WrongArgument(
                f"{pattern!r} is no module of this {type(model).__name__}",
                advice=f"Its parts are {', '.join(name for name, _ in model.named_children())}.",
            )
    return [name for name in names if any(covers(pattern, name) for pattern in patterns)]


def _check_network(model: nn.Module) -> None:
    """Refuse what can't be slimmed without more ado."""
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise WrongArgument(
            f"a {type(model).__name__} has no layers that could be made narrower",
            advice="Slim the network that it was made from.",
        )
    owners: dict[int, str] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if any(isinstance(h, prune.BasePruningMethod) for h in module._forward_pre_hooks.values()):
            raise WrongArgument(
                f"{path or 'the network'} has masks of torch.nn.utils.prune",
                advice="Call make_masks_permanent(model) first.",
            )
        if parametrize.is_parametrized(module):
            raise WrongArgument(
                f"{path or 'the network'} is parametrized",
                advice="Call torch.nn.utils.parametrize.remove_parametrizations first.",
            )
        for name, tensor in own_tensors(module).items() if id(module) not in seen else ():
            place = f"{path}.{name}".lstrip(".")
            if owners.setdefault(id(tensor), place) != place:
                raise WrongArgument(
                    f"{owners[id(tensor)]} and {place} are one tensor, which can't be slimmed",
                    advice="Give each layer a tensor of its own.",
                )
        seen.add(id(module))


def _outputs(model: nn.Module, inputs: Any) -> dict[str, torch.Tensor]:
    """Return what the network gives for the inputs, by name, and change nothing in it."""
    args, kwargs = as_arguments(inputs)
    device, _ = place_of(model)
    cuda = [device] if device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(cuda):
        try:
            found = dict(named_tensors(model(*args, **kwargs)))
        except Exception as error:  # whatever a network raises for inputs that are not for it
            raise WrongArgument(
                f"this {type(model).__name__} can't be run on the inputs: {error}",
                advice="Give inputs of the shape, type and device that it takes.",
            ) from error
    if not found:
        raise WrongArgument(
            f"this {type(model).__name__} gives no tensors, so it can't be traced",
            advice="Slim the part of it that does.",
        )
    return found


def _refuse_unreached(model: nn.Module, inputs: Any) -> None:
    """Refuse a network of which a part does not run: it would keep the old widths, and break."""
    reached: set[str] = set()
    # Attention takes the weights of the layers in it without calling them.
    inner = {id(part) for module in attention_of(model) for part in module.modules()}
    leaves = {
        name: module
        for name, module in model.named_modules()
        if own_tensors(module) and id(module) not in inner
    }
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: reached.add(name))
        for name, module in leaves.items()
    ]
    try:
        _outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [name for name in leaves if name not in reached]
    if idle:
        raise WrongArgument(
            f"these parts do not run in evaluation mode: {', '.join(idle[:5])}",
            advice="Build the network without them (torchvision: aux_logits=False).",
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # what can't be copied raises whatever it likes
        raise WrongArgument(
            f"this {type(model).__name__} can't be copied, and so not be tried: {error}",
            advice="Load its weights into a fresh one, and slim that.",
        ) from error


def _check_outputs(
    slimmed: nn.Module, trial: nn.Module, inputs: Any, expected: dict[str, torch.Tensor]
) -> None:
    """Refuse a slimmed network that fails, gives other shapes, or is not all that is described."""
    try:
        found, again = _outputs(slimmed, inputs), _outputs(trial, inputs)
    except WrongArgument as error:
        raise WrongArgument(
            f"this network does not work without the channels: {error.problem}",
            advice="Keep the part of which it counts the channels, by `keep`.",
        ) from error
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        raise WrongArgument(
            "the outputs would have other shapes without the channels",
            advice="Keep the layers that the outputs come from, by `keep`.",
        )
    for name, tensor in found.items():
        if not torch.equal(tensor, again[name]):
            raise WrongArgument(
                "the slimmed network, rebuilt from its description, gives other outputs",
                advice="It computes with something besides its tensors and widths, or at random.",
            )
