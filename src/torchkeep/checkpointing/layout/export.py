"""A checkpoint as one `.pth` with the usual keys, for programs that expect that."""

from __future__ import annotations

import os

from torchkeep.checkpointing.layout import read_manifest, read_state
from torchkeep.checkpointing.layout.usual_keys import usual_keys
from torchkeep.checkpointing.state.encoding import decode
from torchkeep.errors import CheckpointProblem
from torchkeep.saving import SaveReport, save


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
        checkpoint: the checkpoint, a folder or a file.
        path: the file to write.
        durable: sync it.
        overwrite: replace what is there.

    Raises:
        DamagedFile: the checkpoint is not as it was written.
        CheckpointProblem: it has no model.
        SaveRefused: the file can't be written.
    """
    manifest, state = read_manifest(checkpoint), read_state(checkpoint)
    if "model" not in state["objects"]:
        raise CheckpointProblem(f"{os.fspath(checkpoint)}: there is no model in it")
    metrics = decode({}, manifest["metrics"])
    content = usual_keys(state, manifest, metrics, step_key="step")
    return save(content, path, durable=durable, overwrite=overwrite)
