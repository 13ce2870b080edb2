"""A model's parts in the order of depth.

timm's models say which tensors belong together (`group_matcher`: patterns for names, by which timm
makes learning rates per layer). In others, and where that says too little, the modules are followed
in the order in which they were registered: containers and what holds a stack of blocks are opened,
a block or a layer with weights begins a part, and what has no weight matrix, such as a norm, joins
the part before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchkeep.matching.patterns import covers
from torchkeep.training.surgery.heads import head_names, is_aux
from torchkeep.training.surgery.wrappers import class_of, unwrapped

_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict

_WITH_PREVIOUS = 99999.0
"""What timm's matchers put last in a key for: this goes with the group before."""

_MIN_GROUPS = 3
_MAX_UNMATCHED = 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a model."""

    name: str
    """`stem` for the first, `head` for the layers that give the classes, and between them where
    the part is in the model: `layer1.0`, `blocks.3`. `neck` is what a head has before its
    last layer. No two are the same."""
    parameters: tuple[str, ...]
    """The names of its parameters."""
    buffers: tuple[str, ...] = ()
    """The names of its buffers: a norm's statistics, and what else is no parameter."""


def stages(model: nn.Module) -> tuple[Stage, ...]:
    """Return the model's parts from the input to the output; each tensor is in one of them.

    The last is the head, all layers of `head_names` and what only auxiliary ones use, if the model
    has one. Parallel branches stand one after the other.
    """
    prefix, bare = unwrapped(model)
    names = _tensor_names(bare)
    weights = {
        f"{place}.{name}" if place else name
        for place, module in bare.named_modules()
        for name in _weights(module)
    }
    head = _head_modules(bare)
    in_head = [name for name in names if any(covers(module, name) for module in head)]
    body = [name for name in names if name not in set(in_head)]
    groups = _matched(bare, body) or _walked(bare, set(body))
    groups = _joined(groups, weights)
    named = [("stem", groups[0][1]), *groups[1:]] if groups else []
    named = _named_apart(named) + ([("head", in_head)] if in_head else [])
    parameters = {name for name, _ in bare.named_parameters()}
    return tuple(_stage(name, tensors, parameters, prefix) for name, tensors in named)


Group = tuple[str, list[str]]


def _head_modules(model: nn.Module) -> list[str]:
    """Return the layers that give classes, and for auxiliary ones all that they alone use."""
    names = head_names(model)
    tops = (name.partition(".")[0] for name in names)
    return [top if is_aux(top) else name for top, name in zip(tops, names, strict=True)]


def _stage(name: str, tensors: list[str], parameters: set[str], prefix: str) -> Stage:
    own = tuple(prefix + item for item in tensors if item in parameters)
    buffers = tuple(prefix + item for item in tensors if item not in parameters)
    return Stage(name, own, buffers)


def _tensor_names(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers, module by module."""
    names = {name for name, _ in model.named_parameters()}
    names |= {name for name, _ in model.named_buffers()}
    ordered = []
    for place, module in model.named_modules():
        own = [*module._parameters, *module._buffers]
        full = [f"{place}.{item}" if place else item for item in own]
        ordered += [name for name in full if name in names]
    return ordered


def _joined(groups: list[Group], weights: set[str]) -> list[Group]:
    """Join what has no weight matrix to the part before it, or to the first that has one."""
    joined: list[Group] = []
    for name, tensors in groups:
        has_weight = any(item in weights for item in tensors)
        if joined and not (has_weight and any(item in weights for item in joined[-1][1])):
            before, others = joined.pop()
            joined.append((name if has_weight else before, [*others, *tensors]))
        else:
            joined.append((name, list(tensors)))
    return joined


def _named_apart(groups: list[Group]) -> list[Group]:
    """Give each group a name of its own, and none that of the head."""
    given: dict[str, int] = {}
    apart = []
    for name, tensors in groups:
        name = "neck" if name == "head" else name
        given[name] = given.get(name, 0) + 1
        apart.append((name if given[name] == 1 else f"{name} ({given[name]})", tensors))
    return apart


# --- What timm's models say --------------------------------------------------------------------


def _matched(model: nn.Module, names: list[str]) -> list[Group]:
    """Return the groups of timm's `group_matcher`, or nothing if there are none worth the name."""
    make = getattr(model, "group_matcher", None)
    if not callable(make):
        return []
    try:
        matcher = make(coarse=False)
    except AttributeError:  # some are written for another version of their model
        return []
    key_of = _keys(matcher) if isinstance(matcher, dict) else _called(matcher)
    by_key: dict[tuple[float, ...], list[str]] = {}
    for name in names:
        by_key.setdefault(key_of(name), []).append(name)
    unmatched = len(by_key.get((math.inf,), ())) / max(len(names), 1)
    if len(by_key) < _MIN_GROUPS or unmatched > _MAX_UNMATCHED:
        return []
    groups: list[Group] = []
    for key in sorted(by_key):
        if groups and key[-1] == _WITH_PREVIOUS:
            groups[-1][1].extend(by_key[key])
        else:
            groups.append((_common(by_key[key]), by_key[key]))
    return groups


def _keys(matcher: dict[str, Any]) -> Callable[[str], tuple[float, ...]]:
    """Return the key by which a name's group is found and sorted.

    It is the entry's number, the numbers that its pattern found, and what it adds to them.
    """
    patterns = []
    for number, entry in enumerate(matcher.values()):
        several = entry if isinstance(entry, list | tuple) else [(entry, None)]
        patterns += [(number, re.compile(text), tail or ()) for text, tail in several if text]

    def key_of(name: str) -> tuple[float, ...]:
        for number, pattern, tail in patterns:
            if found := pattern.match(name):
                numbers = [item for item in found.groups() if item is not None]
                return tuple(map(float, (number, *numbers, *tail)))
        return (math.inf,)

    return key_of


def _called(matcher: Callable[[str], Any]) -> Callable[[str], tuple[float, ...]]:
    def key_of(name: str) -> tuple[float, ...]:
        key = matcher(name)
        return tuple(map(float, key)) if isinstance(key, list | tuple) else (float(key),)

    return key_of


def _common(names: list[str]) -> str:
    """Return the module that all of these are in, or else that of the first."""
    path = names[0].split(".")[:-1]
    for end in range(len(path), 0, -1):
        place = ".".join(path[:end])
        if all(name.startswith(f"{place}.") for name in names):
            return place
    return ".".join(path) or names[0]


# --- What the modules say ----------------------------------------------------------------------


def _walked(model: nn.Module, names: set[str]) -> list[Group]:
    parts = _parts(model, "")
    return [(place, kept) for place, own in parts if (kept := [x for x in own if x in names])]


def _parts(module: nn.Module, place: str) -> Iterator[Group]:
    """Yield blocks and layers with their tensors, as they are registered."""
    if place and not _opens(module):
        yield place, [f"{place}.{name}" for name in _tensor_names(module)]
        return
    dot = f"{place}." if place else ""
    own = [*module._parameters, *module._buffers]
    if own:
        yield place or own[0], [dot + name for name in own]
    for name, child in module.named_children():
        yield from _parts(child, dot + name)


def _opens(module: nn.Module) -> bool:
    """Tell whether a part is made of parts: a container of several layers, or a stack of blocks."""
    if isinstance(module, _CONTAINERS):
        is_plain = class_of(module) in _CONTAINERS
        return _is_block(module) and (is_plain or any(map(_is_block, module.children())))
    stacks = (item for item in module.modules() if isinstance(item, _CONTAINERS))
    return any(sum(map(_is_block, stack.children())) > 1 for stack in stacks)


def _is_block(module: nn.Module) -> bool:
    """Tell whether several modules in it have a weight matrix."""
    return sum(1 for part in module.modules() if _weights(part)) > 1


def _weights(module: nn.Module) -> list[str]:
    """Return a layer's own weight matrices; what is beside other modules is a token or a scale."""
    if module._modules:
        return []
    return [
        name for name, item in module._parameters.items() if item is not None and item.dim() > 1
    ]
