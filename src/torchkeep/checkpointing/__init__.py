"""Checkpoints of a training run: what it needs in order to go on, and where that is kept."""

from torchkeep.checkpointing.checkpointer import Checkpointer
from torchkeep.checkpointing.discovery import Checkpoint, list_checkpoints, newest_whole
from torchkeep.checkpointing.export import export_checkpoint
from torchkeep.checkpointing.state import capture, restore

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "capture",
    "export_checkpoint",
    "list_checkpoints",
    "newest_whole",
    "restore",
]
