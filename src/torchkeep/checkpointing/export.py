"""A checkpoint as one `.pth` with the usual keys, for programs that expect that."""

from __future__ import annotations

import os
from typing import Any

from torchkeep.checkpointing.encoding import decode
from torchkeep.checkpointing.layout import read_manifest, read_state
from torchkeep.errors import CheckpointProblem
from torchkeep.saving import SaveReport, save

_KEYS = {
    "model": "model_state_dict",
    "optimizer": "optimizer_state_dict",
    "scheduler": "scheduler_state_dict",
    "scaler": "scaler_state_dict",
    "ema": "ema_state_dict",
}


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    durable: bool = True,
    overwrite: bool = False,
) -> SaveReport:
    """Write a checkpoint as one file that plain `torch.load(weights_only=True)` reads.

    It holds `epoch` and `step` (both count what is finished, so training goes on at epoch
    `epoch`), `loss` and the other metrics in `metrics`, `model_state_dict`,
    `optimizer_state_dict`, and `scheduler_state_dict`, `scaler_state_dict`, `ema_state_dict` where
    the run has them. An exact resume needs more: the checkpoint itself.

    Args:
        checkpoint: the checkpoint's folder.
        path: the file to write.
        durable: sync it.
        overwrite: replace what is there.

    Raises:
        DamagedFile: the checkpoint is not as it was written.
        CheckpointProblem: it has no model.
        SaveRefused: the file can't be written.
    """
    manifest, objects = read_manifest(checkpoint), read_state(checkpoint)["objects"]
    if "model" not in objects:
        raise CheckpointProblem(f"{os.fspath(checkpoint)}: there is no model in it")
    metrics = decode({}, manifest["metrics"])
    content: dict[str, Any] = {"epoch": manifest["epoch"], "step": manifest["step"]}
    if "loss" in metrics:
        content["loss"] = metrics["loss"]
    content["metrics"] = metrics
    content |= {_KEYS[name]: _state_dict(node) for name, node in objects.items() if name in _KEYS}
    return save(content, path, durable=durable, overwrite=overwrite)


def _state_dict(node: dict[str, Any]) -> Any:
    """Return what the object's own `state_dict()` would."""
    if node["kind"] == "items":
        return {name: _state_dict(inner) for name, inner in node["items"].items()}
    state = node["state"]
    if node["kind"] in ("module", "optimizer"):
        return state["state_dict"]
    return state["state"] if node["kind"] == "stateful" else state
