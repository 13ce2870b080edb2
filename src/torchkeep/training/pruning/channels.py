"""Which channels of a network go together, and taking some of them out: by Torch-Pruning.

Only this file knows Torch-Pruning. It works on a copy that the caller gives and may end half done,
so what it did is checked by `slimming` before anything is kept.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchkeep.errors import MissingExtra, WrongArgument
from torchkeep.outputs import as_arguments, named_tensors

Importance = Literal["group", "magnitude"]
"""By what the channels that go are chosen: the norm of everything that belongs to a channel, in all
layers that share it, or of the first layer's weights alone."""

_REDUCTIONS = {"group": "mean", "magnitude": "first"}


def remove_channels(
    model: nn.Module,
    ratio: float,
    *,
    inputs: Any,
    kept: Iterable[nn.Module],
    importance: Importance = "group",
    multiple_of: int = 1,
) -> None:
    """Take a share of the channels out of every layer of a network, in place.

    What the outputs come from directly keeps its width, and so does attention: its channels belong
    to heads, which the code around it counts.

    A share is rounded up, so that a small one takes at least a channel of each layer.

    Args:
        model: the network, in evaluation mode; in any state afterwards if an error is raised.
        ratio: the share of each layer's channels that goes.
        inputs: what the network is traced with.
        kept: layers that keep their outputs.
        importance: see `Importance`.
        multiple_of: what the widths that are left are a multiple of.

    Raises:
        MissingExtra: Torch-Pruning is not installed.
        WrongArgument: it can't trace or prune this network.
    """
    pruning = _torch_pruning()
    args, kwargs = as_arguments(inputs)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # it says by them what is checked here afterwards
        model.requires_grad_(True)  # a frozen network leaves no graph to be traced
        outputs = named_tensors(model(*args, **kwargs))
        if not any(tensor.grad_fn for _, tensor in outputs):
            raise WrongArgument(
                f"this {type(model).__name__} can't be traced: no gradient goes through it",
                advice="Slim it without `detach` or `no_grad` in its forward.",
            )
        how = {"example_inputs": inputs, "forward_fn": lambda net, _: net(*args, **kwargs)}
        try:
            graph = pruning.DependencyGraph().build_dependency(model, **how)
            ignored = [*kept, *_ends(graph), *attention_of(model)]
            _refuse_endless(graph, model, ignored)
            pruner = pruning.pruner.BasePruner(
                model,
                importance=pruning.importance.GroupMagnitudeImportance(
                    p=2, group_reduction=_REDUCTIONS[importance]
                ),
                pruning_ratio=ratio,
                round_to=multiple_of if multiple_of > 1 else None,
                ignored_layers=ignored,
                # The defaults are dictionaries that all of its pruners share and write to.
                in_channel_groups={},
                out_channel_groups={},
                **how,
            )
            pruner.step()
        except WrongArgument:
            raise
        except Exception as error:  # whatever it meets in a network that it does not know
            raise WrongArgument(
                f"Torch-Pruning can't slim this {type(model).__name__}: "
                f"{type(error).__name__}: {error}",
                advice="Keep the part that it stumbles over, by `keep`, or slim another network.",
            ) from error


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        raise MissingExtra.for_modules("slimming a network", ["torch-pruning"], "train") from None


def _ends(graph: Any) -> list[nn.Module]:
    """Return the layers that the outputs come from with no other layer between: classifiers."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    stack = [node for node in graph.module2node.values() if not node.outputs]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node.module, nn.Linear | _ConvNd):
            found.append(node.module)
        else:
            stack += node.inputs
    return found


def _refuse_endless(graph: Any, model: nn.Module, ignored: Iterable[nn.Module]) -> None:
    """Refuse a network in which Torch-Pruning would follow channels for hours, or for ever.

    Where attention or windows reshape them, it may take positions for channels: these multiply each
    time that it comes by (torchvision's Swin and MaxViT). So the way is gone first, and counted. No
    dependency needs to be gone through twice with all the channels of the widest layer.
    """
    dependencies = [item for node in graph.module2node.values() for item in node.dependencies]
    widths = [graph.get_out_channels(node) or 1 for node in graph.module2node.values()]
    left = most = 2 * len(dependencies) * max(widths, default=1)

    def count(places: list[Any]) -> list[Any]:
        nonlocal left
        left -= len(places)
        if left < 0:
            raise WrongArgument(
                f"Torch-Pruning finds no end to what belongs to a channel of this "
                f"{type(model).__name__}",
                advice="Slim another network: it can't follow how this one reshapes its channels. "
                "timm's Swin is one that it can.",
            )
        return places

    for item in dependencies:
        item.index_mapping.append(count)
    inner = [part for layer in ignored for part in layer.modules()]
    for _ in graph.get_all_groups(ignored_layers=inner):
        left = most


def attention_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that divide their channels into heads, without those around them."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        or isinstance(getattr(module, "num_heads", None), int)
    ]
    known = {id(module) for module in found}
    return [
        module
        for module in found
        if not any(id(inner) in known for inner in module.modules() if inner is not module)
    ]
