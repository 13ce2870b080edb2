"""A state as the dict that training scripts save, and that programs expect in a `.pth`."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import torch

from torchkeep.checkpointing.state.encoding import State

_KEYS = {
    "model": "model_state_dict",
    "optimizer": "optimizer_state_dict",
    "scheduler": "scheduler_state_dict",
    "scaler": "scaler_state_dict",
    "ema": "ema_state_dict",
}


def usual_keys(
    state: State, facts: Mapping[str, Any], metrics: Mapping[str, float], *, step_key: str
) -> dict[str, Any]:
    """Return `epoch`, the step, `loss` if it was measured, `metrics`, and the state dicts.

    Args:
        state: the state.
        facts: those of the manifest.
        metrics: the measured values by name.
        step_key: what to call the number of finished steps.
    """
    content: dict[str, Any] = {"epoch": facts["epoch"], step_key: facts["step"]}
    if "loss" in metrics:
        content["loss"] = metrics["loss"]
    content["metrics"] = dict(metrics)
    objects = state.get("objects", {})
    return content | {
        key: _plain(_state_dict(objects[name])) for name, key in _KEYS.items() if name in objects
    }


def _state_dict(node: dict[str, Any]) -> Any:
    """Return what the object's own `state_dict()` would."""
    if node["kind"] == "items":
        return {name: _state_dict(inner) for name, inner in node["items"].items()}
    state = node["state"]
    if node["kind"] in ("module", "optimizer"):
        return state["state_dict"]
    return state["state"] if node["kind"] == "stateful" else state


def _plain(value: Any) -> Any:
    """Return a value without what plain PyTorch refuses to load: arrays become tensors."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        return kind({key: _plain(item) for key, item in value.items()})
    if kind in (list, tuple):
        return kind([_plain(item) for item in value])
    if kind is deque:
        return [_plain(item) for item in value]
    if kind is frozenset:
        return set(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return torch.from_numpy(value)
    return value
