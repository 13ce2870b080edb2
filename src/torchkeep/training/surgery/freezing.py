"""What of a model is trained, and what stays as it is, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.matching.patterns import covers
from torchkeep.training.surgery.heads import head_names
from torchkeep.training.surgery.stages import Stage, stages

_STATISTICS = frozenset("running_mean running_var _u weight_u".split())
"""Buffers that follow the data or the step whenever their module is in training mode: those of
BatchNorm, InstanceNorm and EvoNorm, and the vectors of spectral norms."""


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are to be optimised, for the optimizer's constructor."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def freeze(model: nn.Module, *, except_: Iterable[str] = ()) -> list[str]:
    """Freeze the model but for some modules, and return the names of the frozen parameters.

    `requires_grad` alone does not freeze a BatchNorm: its statistics follow the data whenever it
    is in training mode. So the frozen ones are put into evaluation mode, and stay there through
    every later `model.train()`.

    Args:
        model: the model, changed in place.
        except_: what stays trainable: names of modules or parameters, or patterns such as
            `layer4.*`. A module's name covers everything in it.

    Raises:
        WrongArgument: a pattern matches nothing.
    """
    patterns = tuple(except_)
    refuse_idle(model, patterns)
    return _freeze(*_parts(model, lambda name: not _matches(name, patterns)))


def freeze_all_but_head(model: nn.Module) -> list[str]:
    """Freeze all but the layers of `head_names`, and return the frozen parameters' names.

    Raises:
        WrongArgument: the model has no such layer.
    """
    names = head_names(model)
    if not names:
        raise WrongArgument(
            f"this {type(model).__name__} has no layer that gives classes",
            advice="Give it one with replace_head, or name what is trained: freeze(except_=...).",
        )
    return freeze(model, except_=names)


def freeze_stages(model: nn.Module, num: int) -> list[str]:
    """Freeze the first `num` of the model's `stages`, and return their parameters' names.

    The others are left as they are: those that are frozen stay so.

    Raises:
        WrongArgument: the model has fewer stages, or `num` is negative.
    """
    parts = stages(model)
    refuse_number(model, num, len(parts))
    return _freeze(*_parts_of_stages(model, parts[:num]))


def unfreeze(model: nn.Module, patterns: Iterable[str] = ("*",)) -> list[str]:
    """Undo `freeze` for the modules or parameters named, and return the parameters' names.

    Modes change at the next `model.train()`.

    Raises:
        WrongArgument: a pattern matches nothing.
    """
    patterns = tuple(patterns)
    refuse_idle(model, patterns)
    return _unfreeze(*_parts(model, lambda name: _matches(name, patterns)))


def unfreeze_stages(model: nn.Module, num: int) -> list[str]:
    """Undo freezing for the last `num` of the model's `stages`, and return the parameters' names.

    Raises:
        WrongArgument: the model has fewer stages, or `num` is negative.
    """
    parts = stages(model)
    refuse_number(model, num, len(parts))
    return _unfreeze(*_parts_of_stages(model, parts[len(parts) - num :]))


def _freeze(parameters: Mapping[str, nn.Parameter], modules: Iterable[nn.Module]) -> list[str]:
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for module in modules:
        if has_statistics(module):
            module.training = False
            # On the instance, where Module.train() looks; a partial, unlike a bound method or a
            # closure, goes through copy.deepcopy and pickle.
            module.train = partial(_stay_in_eval, module)  # type: ignore[method-assign]
    return list(parameters)


def _unfreeze(parameters: Mapping[str, nn.Parameter], modules: Iterable[nn.Module]) -> list[str]:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for module in modules:
        vars(module).pop("train", None)
    return list(parameters)


_Parts = tuple[dict[str, nn.Parameter], list[nn.Module]]


def _parts(model: nn.Module, is_meant: Callable[[str], bool]) -> _Parts:
    """Return the parameters by name, and the modules, whose names are meant."""
    parameters = {name: item for name, item in model.named_parameters() if is_meant(name)}
    return parameters, [module for name, module in model.named_modules() if is_meant(name)]


def _parts_of_stages(model: nn.Module, parts: Sequence[Stage]) -> _Parts:
    """Return the parameters of stages by name, and the modules that their buffers are in."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    owners = dict.fromkeys(name.rpartition(".")[0] for part in parts for name in part.buffers)
    return (
        {name: parameters[name] for part in parts for name in part.parameters},
        [modules[name] for name in owners],
    )


def has_statistics(module: nn.Module) -> bool:
    """Tell whether a module has buffers of its own that change whenever it is in training mode."""
    return any(
        name in _STATISTICS and isinstance(item, torch.Tensor)
        for name, item in module._buffers.items()
    )


def stays_in_eval(module: nn.Module) -> bool:
    """Tell whether `freeze` keeps this module in evaluation mode."""
    train = vars(module).get("train")
    return isinstance(train, partial) and train.func is _stay_in_eval


def refuse_idle(model: nn.Module, patterns: Iterable[str]) -> None:
    """Make sure that each pattern means something in the model.

    Raises:
        WrongArgument: one doesn't.
    """
    names = [name for name, _ in model.named_modules()] + [n for n, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, (pattern,)) for name in names):
            raise WrongArgument(
                f"{pattern!r} is no module or parameter of this {type(model).__name__}",
                advice=f"Its parts are {', '.join(name for name, _ in model.named_children())}.",
            )


def refuse_number(model: nn.Module, num: int, num_stages: int) -> None:
    """Make sure that the model has so many stages.

    Raises:
        WrongArgument: it hasn't.
    """
    if not 0 <= num <= num_stages:
        raise WrongArgument(
            f"a number of stages from 0 to {num_stages} is what this {type(model).__name__} "
            f"has, not {num}",
            advice="torchkeep.training.surgery.stages names them.",
        )


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - train's
    module.training = False
    return module


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(covers(pattern, name) for pattern in patterns)
