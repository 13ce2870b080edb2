"""Which training framework wrote a checkpoint, by the keys that it alone uses."""

from __future__ import annotations

from torchkeep.contents import Contents, Object
from torchkeep.formats.own import TRAINING_STATE

_SIGNATURES: tuple[tuple[str, frozenset[str]], ...] = (
    ("Lightning", frozenset({"pytorch-lightning_version"})),
    ("Ultralytics", frozenset({"model", "ema", "updates", "optimizer"})),
    ("Ultralytics", frozenset({"model", "train_args"})),
    ("mmengine", frozenset({"message_hub", "state_dict"})),
    ("mmcv", frozenset({"meta", "state_dict", "optimizer"})),
    ("mmcv", frozenset({"meta", "state_dict"})),
    ("DeepSpeed", frozenset({"module", "ds_config"})),
    ("DeepSpeed", frozenset({"module", "ds_version"})),
    ("fairseq", frozenset({"model", "optimizer_history"})),
    ("fairseq", frozenset({"model", "last_optimizer_state"})),
    ("timm", frozenset({"arch", "state_dict", "args", "version"})),
    ("detectron2", frozenset({"model", "iteration", "optimizer", "scheduler"})),
    ("torchkeep", frozenset({"torchkeep"})),
)
"""Framework and the keys that its checkpoints have at the root; the first match counts."""

_CLASS_ROOTS: dict[str, str] = {
    "fastai": "FastAI",
    "stable_baselines3": "stable-baselines3",
    "ultralytics": "Ultralytics",
}


def is_training_state(contents: Contents) -> bool:
    """Whether a file is the `state.safetensors` of a torchkeep checkpoint."""
    is_ours = TRAINING_STATE.items() <= contents.metadata.items()
    return is_ours and contents.container == "safetensors"


def framework(contents: Contents) -> str | None:
    """Return the framework's name, or None if nothing gives it away."""
    root = contents.root
    if is_training_state(contents):
        return "torchkeep"
    if isinstance(root, dict):
        keys = {key for key in root if isinstance(key, str)}
        for name, signature in _SIGNATURES:
            if signature <= keys:
                return name
    if isinstance(root, Object):
        return _CLASS_ROOTS.get(root.class_path.partition(".")[0])
    return None
