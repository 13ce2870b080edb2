"""What is in the dicts and lists that objects are given in, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def entries(item: Any) -> list[tuple[Any, Any]]:
    """Return the keys of a dict, or the positions of a list, with what is there."""
    return list(item.items() if isinstance(item, dict) else enumerate(item))


def placed(item: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in dicts and lists of an object, or the object itself, each with its place."""
    if type(item) in (dict, list):
        for key, value in entries(item):
            yield from placed(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, item


def leaves(item: Any) -> Iterator[Any]:
    """Yield what `placed` yields, without the places."""
    for _, leaf in placed(item):
        yield leaf


def all_parameters(item: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of all modules among the leaves."""
    for leaf in leaves(item):
        if isinstance(leaf, nn.Module):
            yield from leaf.parameters()
