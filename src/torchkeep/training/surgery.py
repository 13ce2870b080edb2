"""Changing a model for a new task: what is trained, and what it ends in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.matching.patterns import covers


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are to be optimised, for the optimizer's constructor."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- Freezing ----------------------------------------------------------------------------------


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
    _refuse_idle(model, patterns)
    frozen = []
    for name, parameter in model.named_parameters():
        if not _matches(name, patterns):
            parameter.requires_grad_(False)
            frozen.append(name)
    for name, module in model.named_modules():
        if _has_statistics(module) and not _matches(name, patterns):
            module.training = False
            # On the instance, where Module.train() looks; a partial, unlike a bound method or a
            # closure, goes through copy.deepcopy and pickle.
            module.train = partial(_stay_in_eval, module)
    return frozen


def unfreeze(model: nn.Module, patterns: Iterable[str] = ("*",)) -> list[str]:
    """Undo `freeze` for the modules or parameters named, and return the parameters' names.

    Modes change at the next `model.train()`.

    Raises:
        WrongArgument: a pattern matches nothing.
    """
    patterns = tuple(patterns)
    _refuse_idle(model, patterns)
    freed = []
    for name, parameter in model.named_parameters():
        if _matches(name, patterns):
            parameter.requires_grad_(True)
            freed.append(name)
    for name, module in model.named_modules():
        if _matches(name, patterns):
            vars(module).pop("train", None)
    return freed


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - train's
    module.training = False
    return module


def _has_statistics(module: nn.Module) -> bool:
    """Tell whether it is a norm that follows the data: BatchNorm, or InstanceNorm that tracks."""
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(covers(pattern, name) for pattern in patterns)


def _refuse_idle(model: nn.Module, patterns: Iterable[str]) -> None:
    names = [name for name, _ in model.named_modules()] + [n for n, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, (pattern,)) for name in names):
            raise WrongArgument(
                f"{pattern!r} is no module or parameter of this {type(model).__name__}",
                advice=f"Its parts are {', '.join(name for name, _ in model.named_children())}.",
            )


# --- The head ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier's last layer that was replaced."""

    name: str
    """Where it is in the model: `fc`, `classifier.6`, `heads.head`."""
    num_features: int
    """What goes into it."""
    old_classes: int
    """What came out of it."""
    num_classes: int
    """What comes out of it now."""


def replace_head(model: nn.Module, num_classes: int, *, name: str | None = None) -> Head:
    """Give a classifier a new last layer, with fresh weights, for `num_classes` classes.

    It has the old one's bias setting, device and dtype, and is trainable. What PyTorch's seed is
    decides its initial weights.

    Args:
        model: the classifier, changed in place.
        num_classes: the number of outputs.
        name: the layer to replace. By default the last `nn.Linear` that the model registers, or
            the last 1x1 `nn.Conv2d` if it has no Linear: right for torchvision's ResNet, VGG,
            MobileNet, EfficientNet, DenseNet, SqueezeNet, ViT and their relatives.

    Raises:
        WrongArgument: there is no such layer, or `num_classes` is not positive.
    """
    if num_classes < 1:
        raise WrongArgument(f"a head needs at least one class, not {num_classes}")
    name = _head_name(model) if name is None else name
    old = dict(model.named_modules()).get(name)
    if isinstance(old, nn.Linear):
        head = Head(name, old.in_features, old.out_features, num_classes)
        new: nn.Module = nn.Linear(head.num_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        head = Head(name, old.in_channels, old.out_channels, num_classes)
        new = nn.Conv2d(head.num_features, num_classes, 1, bias=old.bias is not None)
    else:
        raise WrongArgument(
            f"this {type(model).__name__} has no Linear layer or 1x1 Conv2d called {name!r}",
            advice="Pass the name of the layer to replace.",
        )
    owner, _, attribute = name.rpartition(".")
    new = new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)
    setattr(model.get_submodule(owner), attribute, new)
    return head


def _head_name(model: nn.Module) -> str:
    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    for kind in (nn.Linear, nn.Conv2d):
        names = [
            name
            for name, module in modules
            if isinstance(module, kind) and getattr(module, "kernel_size", (1, 1)) == (1, 1)
        ]
        if names and names[-1]:
            return names[-1]
    raise WrongArgument(
        f"this {type(model).__name__} has no last layer that could be replaced",
        advice="Pass the name of the layer to replace.",
    )
