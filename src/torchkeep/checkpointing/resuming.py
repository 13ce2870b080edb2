"""What a checkpoint must be for a run to go on from it, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchkeep.checkpointing.doctor.environment import differences
from torchkeep.checkpointing.layout import read_manifest
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, verified
from torchkeep.checkpointing.state.encoding import State
from torchkeep.checkpointing.state.sharded import is_sharded
from torchkeep.errors import DamagedFile, InexactResume

_PARTS = {"objects": dict, "rng": dict, "inexact": list, "progress": dict, "data": dict}


def check_is_of_run(state: State, path: Path) -> None:
    """Raise unless a state has all that a run goes on with.

    Raises:
        DamagedFile: it has not: another program wrote it.
    """
    for name, kind in _PARTS.items():
        if not isinstance(state.get(name), kind):
            raise DamagedFile(f"its {name!r} is not what a run's checkpoint has there", path=path)


def reasons_against(manifest: Mapping[str, Any], objects: Mapping[str, object]) -> list[str]:
    """Return why a run may not go on bit for bit from a checkpoint; nothing if it will.

    Args:
        manifest: the checkpoint's.
        objects: what the run has, by name; None counts as absent.
    """
    objects_saved = manifest["structure"].get("objects")
    saved = set(objects_saved) if isinstance(objects_saved, dict) else set()
    here = {name for name, item in objects.items() if item is not None}
    return [
        *manifest["inexact"],
        *differences(manifest.get("environment")),
        *_other_layout(manifest, objects.get("model")),
        *(f"the checkpoint has {name}, and this run has not" for name in sorted(saved - here)),
        *(f"this run has {name}, and the checkpoint has not" for name in sorted(here - saved)),
    ]


def _other_layout(manifest: Mapping[str, Any], model: object) -> list[str]:
    """Return what is otherwise if as many ranks had pieces of the model, and now have all of it.

    FSDP2 adds up gradients in another order than DDP. One rank has nothing to add up.
    """
    boxes = manifest.get("boxes")
    if manifest.get("ranks", 1) == 1 or not isinstance(boxes, Mapping):
        return []
    was, now = any(name.startswith("shard-") for name in boxes), _has_pieces(model)
    if was == now:
        return []
    how = {True: "in pieces (FSDP2)", False: "as a whole (DDP)"}
    return [f"each rank had the model {how[was]}, and now it is {how[now]}"]


def _has_pieces(model: object) -> bool:
    return isinstance(model, nn.Module) and any(map(is_sharded, model.parameters()))


def inexact_resume(
    checkpoint: Checkpoint, reasons: list[str], objects: Mapping[str, object]
) -> InexactResume:
    """Return the error that tells why, and what to do; it looks for an older one that is exact."""
    advice = "Pass allow_inexact=True to go on all the same."
    if (older := _older_exact(checkpoint, objects)) is not None:
        advice = (
            f"Go back to an older one that is exact: call restore({str(older)!r}) on the "
            "Checkpointer before the `with`; or pass allow_inexact=True."
        )
    return InexactResume(
        f"{checkpoint.path}: going on from here may not be exact: {'; '.join(reasons)}",
        reasons=tuple(reasons),
        advice=advice,
    )


def _older_exact(checkpoint: Checkpoint, objects: Mapping[str, object]) -> Path | None:
    """Return the newest checkpoint before the given one that can be resumed exactly."""
    for item in reversed(list_checkpoints(checkpoint.path.parent)):
        if item.problem or item.inexact or item.serial >= checkpoint.serial:
            continue
        if not verified(item).problem and not reasons_against(read_manifest(item.path), objects):
            return item.path
    return None
