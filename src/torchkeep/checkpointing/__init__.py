"""Checkpoints of a training run: what it needs in order to go on, and where that is kept."""

from torchkeep.checkpointing.checkpointer import Checkpointer
from torchkeep.checkpointing.doctor.examination import examine_run
from torchkeep.checkpointing.doctor.findings import Finding
from torchkeep.checkpointing.doctor.inventory import inventory
from torchkeep.checkpointing.layout.export import export_checkpoint
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, newest_whole
from torchkeep.checkpointing.runs.overview import Run, find_runs, look_at_run
from torchkeep.checkpointing.runs.pruning import Pruning, prune
from torchkeep.checkpointing.state.capturing import capture, restore
from torchkeep.checkpointing.state.rng import seed_all, undisturbed

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
    "seed_all",
    "undisturbed",
]
