"""What a classifier ends in, and another in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.training.surgery.wrappers import unwrapped

Layer = nn.Linear | nn.Conv2d
"""What gives the classes: a Linear, or a Conv2d of 1x1."""

_USUAL = frozenset("classif classifier fc head heads last_linear linear logits out output".split())
"""What the part of a network that gives the classes is usually called."""


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier's last layer that was replaced."""

    name: str
    """Where it is in the model: `fc`, `classifier.6`, `heads.head`."""
    num_features: int
    """What goes into it."""
    old_classes: int
    """What came out of it; 0 if the model ended in features."""
    num_classes: int
    """What comes out of it now."""
    others: tuple[str, ...] = ()
    """The further layers that give classes and were replaced: those of auxiliary outputs, which
    only training uses, and of distillation."""

    @property
    def names(self) -> tuple[str, ...]:
        """All the layers that were replaced."""
        return (self.name, *self.others)


def replace_head(model: nn.Module, num_classes: int, *, name: str | None = None) -> Head:
    """Give a classifier new last layers, with fresh weights, for `num_classes` classes.

    A new layer has the old one's bias setting, device and dtype, and is trainable. What PyTorch's
    seed is decides its initial weights. A model of timm that was made for features gets a head as
    timm makes it. `num_classes` and `num_labels`, where the model has them, follow.

    Args:
        model: the classifier, changed in place.
        num_classes: the number of outputs.
        name: the one layer to replace; by default those of `head_names`.

    Raises:
        WrongArgument: there is no such layer, or `num_classes` is not positive.
    """
    if num_classes < 1:
        raise WrongArgument(f"a head needs at least one class, not {num_classes}")
    names = head_names(model) if name is None else (name,)
    if not names:
        return _first_head(model, num_classes)
    old = [_layer(model, item) for item in names]
    for layer in old:
        _put(model, layer, _like(layer, num_classes))
    _tell(model, names, _num_outputs(old[0]), num_classes, always=name is None)
    return Head(names[0], _num_inputs(old[0]), _num_outputs(old[0]), num_classes, tuple(names[1:]))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that give a classifier's outputs, the main one first.

    That is what the model says of itself (timm's `pretrained_cfg["classifier"]` and
    `get_classifier`), and else the last `nn.Linear`, or 1x1 `nn.Conv2d` if there is none, in what
    is called `fc`, `classifier`, `head` or the like; in a model without such names the last module
    that has parameters, if it is one of these. Auxiliary classifiers are those in modules called
    `aux...` with as many outputs. Empty if there is none, as in a model that ends in features.
    """
    prefix, bare = unwrapped(model)
    if vars(bare).get("num_classes") == 0:
        return ()
    layers = {name: item for name, item in bare.named_modules() if name and _is_layer(item)}
    main = _said(bare, layers) or _structural(bare, layers)
    if not main:
        return (prefix.rstrip("."),) if prefix and _is_layer(bare) else ()
    num_classes = _num_outputs(layers[main[0]])
    aux = {top: "" for top in (name.partition(".")[0] for name in layers) if is_aux(top)}
    aux |= {name.partition(".")[0]: name for name in layers}
    others = [
        name
        for top, name in aux.items()
        if is_aux(top) and name not in main and _num_outputs(layers[name]) == num_classes
    ]
    return tuple(prefix + name for name in (*main, *others))


def _said(model: nn.Module, layers: dict[str, Layer]) -> list[str]:
    """Return the layers that a model of timm's kind names as its classifiers."""
    config = getattr(model, "pretrained_cfg", None)
    said = config.get("classifier") if isinstance(config, dict) else None
    names = [said] if isinstance(said, str) else [item for item in said or () if item]
    found = [layer for name in names if (layer := _last_in(name, layers))]
    if found or not callable(getattr(model, "get_classifier", None)):
        return found
    given = model.get_classifier()  # type: ignore[operator]
    parts = given if isinstance(given, tuple | list | nn.ModuleList) else [given]
    places = {id(module): name for name, module in model.named_modules()}
    names = [places[id(part)] for part in parts if id(part) in places]
    return [layer for name in names if name and (layer := _last_in(name, layers))]


def _structural(model: nn.Module, layers: dict[str, Layer]) -> list[str]:
    names = [name for name in layers if not is_aux(name.partition(".")[0])]
    usual = _last((name for name in names if name.partition(".")[0] in _USUAL), layers)
    if usual:
        return [usual]
    # What has a norm after it gives features, and must not be taken for classes.
    last = [name for name, item in model.named_modules() if _has_own(item)]
    return last[-1:] if last and last[-1] in names else []


def _has_own(module: nn.Module) -> bool:
    return any(item is not None for item in module._parameters.values())


def _last_in(name: str, layers: dict[str, Layer]) -> str:
    inside = [key for key in layers if key == name or key.startswith(f"{name}.")]
    return _last(inside, layers)


def _last(names: Iterable[str], layers: dict[str, Layer]) -> str:
    """Return the last Linear of those, else the last Conv2d, else an empty name."""
    names = list(names)
    linear = [name for name in names if isinstance(layers[name], nn.Linear)]
    return (linear or names or [""])[-1]


def is_aux(name: str) -> bool:
    """Tell whether a module's name is that of an auxiliary classifier."""
    return name.lower().startswith("aux")


def _is_layer(module: nn.Module | None) -> TypeGuard[Layer]:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _layer(model: nn.Module, name: str) -> Layer:
    found = dict(model.named_modules()).get(name)
    if not name or not _is_layer(found):
        raise WrongArgument(
            f"this {type(model).__name__} has no Linear layer or 1x1 Conv2d called {name!r}",
            advice="Pass the name of the layer to replace.",
        )
    return found


def _num_inputs(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _num_outputs(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _like(old: Layer, num_classes: int) -> Layer:
    # Made on the CPU and moved, so that its values are the same on every device; but without memory
    # for a model that has none.
    place = "meta" if old.weight.is_meta else "cpu"
    has_bias = old.bias is not None
    new: Layer
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=has_bias, device=place)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=has_bias, device=place)
    return new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever the model has `old`, which may be in more than one place."""
    for owner in list(model.modules()):
        for attribute, child in list(owner._modules.items()):
            if child is old:
                setattr(owner, attribute, new)


def _tell(model: nn.Module, names: Iterable[str], old: int, new: int, *, always: bool) -> None:
    """Have the model, and the modules round the layers, know the number of classes."""
    prefix, bare = unwrapped(model)
    owners = {prefix.rstrip(".")}
    for name in names:
        parts = name.split(".")
        owners |= {".".join(parts[:end]) for end in range(len(parts))}
    for owner in map(model.get_submodule, owners):
        for attribute in ("num_classes", "num_labels"):
            known = vars(owner).get(attribute)
            if isinstance(known, int) and (known == old or (always and owner is bare)):
                setattr(owner, attribute, new)


def _first_head(model: nn.Module, num_classes: int) -> Head:
    """Have a model of timm, made for features, make its head."""
    _, bare = unwrapped(model)
    if getattr(bare, "num_classes", None) == 0 and hasattr(bare, "reset_classifier"):
        like = next((p for p in bare.parameters() if p.is_floating_point()), torch.empty(0))
        bare.reset_classifier(num_classes)  # type: ignore[operator]
        names = head_names(model)
        if names:
            for name in names:
                model.get_submodule(name).to(device=like.device, dtype=like.dtype)
            layer = _layer(model, names[0])
            return Head(names[0], _num_inputs(layer), 0, num_classes, names[1:])
    raise WrongArgument(
        f"this {type(model).__name__} has no last layer that could be replaced",
        advice="Pass the name of the layer to replace.",
    )
