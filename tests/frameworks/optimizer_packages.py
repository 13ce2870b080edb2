"""Optimizers from packages of their own: Lion, bitsandbytes, schedule-free, and two collections."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train

PACKAGES = (
    "lion_pytorch bitsandbytes.optim schedulefree prodigyopt dadaptation adabelief_pytorch "
    "came_pytorch torch_optimizer pytorch_optimizer"
).split()


INNER = {"Magma": "AdamW"}
"""Classes that wrap another optimizer, whose state is what they save."""


def write(folder: Path) -> None:
    found = 0
    for package in PACKAGES:
        for name, cls in _classes(package):
            state = _trained(cls)
            if state is not None:
                found += 1
                path = folder / package.partition(".")[0] / f"{name}.pt"
                torch.save(
                    state, expecting(path, role="optimizer", optimizer_class=INNER.get(name, name))
                )
    if not found:
        raise ModuleNotFoundError("none of them", name=" or ".join(PACKAGES))


def _classes(package: str) -> Iterator[tuple[str, Any]]:
    try:
        module = importlib.import_module(package)
    except ImportError:
        return
    for name in sorted(dir(module)):
        cls = getattr(module, name)
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer):
            yield name, cls


def _trained(cls: Any) -> dict[str, Any] | None:
    """Return the state after two steps, or None if such a small network won't do."""
    net = SmallNet()
    options = {"lr": 1e-3, "momentum": 0.9}
    takes = inspect.signature(cls).parameters
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        chosen = {key: value for key, value in options.items() if key in takes}
        optimizer = cls(list(net.parameters()), **chosen)
        if hasattr(optimizer, "train"):
            optimizer.train()
        train(net, [optimizer])
        state: dict[str, Any] = optimizer.state_dict()
        return state
    return None
