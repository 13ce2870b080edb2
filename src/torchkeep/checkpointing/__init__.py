"""Checkpoints of a training run: what it needs in order to go on, and where that is kept."""

from torchkeep.checkpointing.checkpointer import Checkpointer
from torchkeep.checkpointing.discovery import Checkpoint, list_checkpoints, newest_whole
from torchkeep.checkpointing.doctor import examine_run
from torchkeep.checkpointing.export import export_checkpoint
from torchkeep.checkpointing.findings import Finding
from torchkeep.checkpointing.inventory import inventory
from torchkeep.checkpointing.pruning import Pruning, prune
from torchkeep.checkpointing.runs import Run, find_runs, look_at_run
from torchkeep.checkpointing.state import capture, restore

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "Finding",
    "Pruning",
    "Run",
    "capture",
    "examine_run",
    "export_checkpoint",
    "find_runs",
    "inventory",
    "list_checkpoints",
    "look_at_run",
    "newest_whole",
    "prune",
    "restore",
]
