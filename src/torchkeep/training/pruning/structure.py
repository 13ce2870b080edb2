"""The structure of a slimmed network, as a small table of how wide its layers are.

The table and the network as it was before make the slimmed one: `restructure` gives each layer
tensors of the new shapes, which a load then fills. Nothing but torch is needed for that.

As JSON: `{"version": 1, "network": "torchvision/resnet18", "num_classes": 10, "layers":
{"conv1": {"out_channels": 32}, "bn1": {"num_features": 32}, ...}, "parameters": {"gamma": [32, 1,
1]}}`. `layers` has the widths that changed; `parameters` the shapes of what is in no such layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchkeep.contents import child_path
from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.formats.plain_json import parse_json
from torchkeep.training.pruning.widths import (
    Shapes,
    kind_of,
    own_tensors,
    set_widths,
    widths_of,
)
from torchkeep.wording import printable

_VERSION = 1
_MAX_WIDTH = 1 << 24
"""Wider is no layer, and a file that says so is made to take memory."""

_MOST = {"num_classes": 1 << 17, "input_channels": 1 << 10}
"""The network is first made with as many, and not every one can be made without memory."""


@dataclass(frozen=True, slots=True)
class SlimStructure:
    """How a slimmed network differs from the one that it was made from."""

    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The widths that changed, by the layer's name and by attribute: `out_channels`, ..."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The shapes of the parameters that changed and are in no layer with widths, by name."""
    network: str = ""
    """The network it was made from, as `networks.build` takes it; empty if that is not known."""
    num_classes: int | None = None
    """Its number of classes, if not the default."""
    input_channels: int | None = None
    """Its number of input channels, if not the default."""

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON has."""
        return {
            "version": _VERSION,
            "network": self.network,
            "num_classes": self.num_classes,
            "input_channels": self.input_channels,
            "layers": {name: dict(widths) for name, widths in self.layers.items()},
            "parameters": {name: list(shape) for name, shape in self.parameters.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> SlimStructure:
        """Return the structure that `to_json` or its text describes.

        Raises:
            WrongArgument: it is no such table: a width is no number from 1 on, or is huge.
        """
        table = _parsed(value) if isinstance(value, str) else value
        if not isinstance(table, dict) or table.get("version") != _VERSION:
            raise _broken(f"it is no table of version {_VERSION}")
        network = table.get("network", "")
        if not isinstance(network, str):
            raise _broken("the network's name is no text")
        layers, parameters = _table(table, "layers"), _table(table, "parameters")
        for name, widths in layers.items():
            if not isinstance(widths, dict):
                raise _broken(f"layer {printable(name)} has no table of widths")
        return cls(
            {
                name: {key: _width(name, item) for key, item in widths.items()}
                for name, widths in layers.items()
            },
            {name: _shape(name, sizes) for name, sizes in parameters.items()},
            network,
            _optional(table, "num_classes"),
            _optional(table, "input_channels"),
        )

    def to_text(self) -> str:
        """Return it as JSON text, as it stands in a file's metadata."""
        return json.dumps(self.to_json(), ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except DamagedFile as error:
        raise _broken(error.problem) from None


def _broken(why: str) -> WrongArgument:
    return WrongArgument(
        f"this is no description of a slimmed network: {why}",
        advice="Take the one of `describe_structure`, or of the file's metadata.",
    )


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise _broken(f"{key} is no table")
    return value


def _width(name: str, value: object, most: int = _MAX_WIDTH) -> int:
    if type(value) is not int or not 1 <= value <= most:
        shown = printable(f"{value!r:.40}")
        raise _broken(f"{printable(name)} has the width {shown}, and not 1 to {most:,}")
    return value


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _broken(f"parameter {printable(name)} has no shape")
    return tuple(_width(name, size) for size in value)


def _optional(table: Mapping[str, Any], key: str) -> int | None:
    value = table.get(key)
    return None if value is None else _width(key, value, _MOST[key])


# --- Describing --------------------------------------------------------------------------------


def describe_structure(
    original: nn.Module,
    slimmed: nn.Module,
    *,
    network: str = "",
    num_classes: int | None = None,
    input_channels: int | None = None,
) -> SlimStructure:
    """Return what makes the slimmed network of the original one.

    Args:
        original: the network before it was slimmed.
        slimmed: the same network with fewer channels.
        network: the name by which `networks.build` makes the original.
        num_classes: what `build` was given.
        input_channels: what `build` was given.

    Raises:
        WrongArgument: they are not the same network, or differ in what the table can't say.
    """
    layers: dict[str, Mapping[str, int]] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    others = dict(slimmed.named_modules())
    for name, module in original.named_modules():
        other = others.get(name)
        if other is None or type(other) is not type(module):
            raise WrongArgument(f"the two networks differ in more than widths: {name!r}")
        kind = kind_of(module)
        if kind is not None:
            before, after = widths_of(module, kind), widths_of(other, kind)
            if changed := {key: after[key] for key in after if after[key] != before[key]}:
                layers[name] = changed
        else:
            tensors = own_tensors(other)
            for key, tensor in own_tensors(module).items():
                if tensors[key].shape != tensor.shape:
                    parameters[child_path(name, key)] = tuple(tensors[key].shape)
    structure = SlimStructure(layers, parameters, network, num_classes, input_channels)
    planned = _planned(original, structure)
    for name, tensor in slimmed.state_dict(keep_vars=True).items():
        # A module in two places has two names here, and one among those that are planned.
        if tuple(tensor.shape) != planned.get(name, tuple(tensor.shape)):
            raise WrongArgument(
                f"{name} is {list(tensor.shape)}, and the layer's widths say {list(planned[name])}"
            )
    return structure


# --- Restructuring -----------------------------------------------------------------------------


def restructure(model: nn.Module, structure: SlimStructure) -> None:
    """Give a network the widths of a slimmed one; load its values afterwards.

    What changes its shape has no values until then (they are NaN). Parameters keep their device,
    dtype and `requires_grad`; an optimizer made before still has the old ones.

    Args:
        model: the network as it was before it was slimmed, changed in place. It may be on `meta`.
        structure: what `describe_structure` or `read_structure` gave.

    Raises:
        WrongArgument: the structure does not fit the network: a layer is not there, has no such
            width, would become wider or can't be so wide. The network is unchanged.
    """
    planned = _planned(model, structure)
    modules = dict(model.named_modules())
    for name, widths in structure.layers.items():
        set_widths(modules[name], widths)
    for path, module in modules.items():
        for key, tensor in own_tensors(module).items():
            shape = planned.get(child_path(path, key), tuple(tensor.shape))
            if shape != tuple(tensor.shape):
                _replace(module, key, tensor, shape)


def _replace(module: nn.Module, key: str, old: torch.Tensor, shape: tuple[int, ...]) -> None:
    fill = torch.nan if old.is_floating_point() else 0
    new = torch.full(shape, fill, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, key, new)


def _planned(model: nn.Module, structure: SlimStructure) -> Shapes:
    """Return the shapes of all tensors of the network once it has the structure."""
    modules = dict(model.named_modules())
    planned = {
        child_path(path, key): tuple(tensor.shape)
        for path, module in modules.items()
        for key, tensor in own_tensors(module).items()
    }
    for name, widths in structure.layers.items():
        for key, shape in _layer_shapes(modules.get(name), name, widths).items():
            planned[child_path(name, key)] = shape
    for name, shape in structure.parameters.items():
        owner = modules.get(name.rpartition(".")[0])
        if owner is None or name not in planned or kind_of(owner) is not None:
            raise _unfit(f"there is no parameter {printable(name)} that is in no layer")
        before = planned[name]
        if len(before) != len(shape) or any(new > old for new, old in zip(shape, before)):  # noqa: B905
            raise _unfit(f"{printable(name)} is {list(before)}, and can't be {list(shape)}")
        planned[name] = shape
    return planned


def _layer_shapes(module: nn.Module | None, name: str, widths: Mapping[str, int]) -> Shapes:
    kind = None if module is None else kind_of(module)
    if module is None or kind is None:
        raise _unfit(f"there is no layer {printable(name)} that has widths")
    before = widths_of(module, kind)
    for key, width in widths.items():
        if key not in before:
            raise _unfit(f"{printable(name)} has no width {printable(key)}")
        if not 1 <= width <= before[key]:
            raise _unfit(f"{printable(name)} has {before[key]} {key}, and can't have {width}")
    shapes = kind.shapes(module, before | dict(widths))
    if shapes is None:
        raise _unfit(f"{printable(name)} can't have {dict(widths)}")
    return {key: shapes[key] for key in own_tensors(module) if key in shapes}


def _unfit(why: str) -> WrongArgument:
    return WrongArgument(
        f"the structure does not fit this network: {why}",
        advice="Take the network that was slimmed, as it was before.",
    )
