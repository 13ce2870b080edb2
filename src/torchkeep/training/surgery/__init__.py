"""Changing a model for a new task: what it ends in, what it takes, what is trained and how fast.

heads.py       the layers that give classes, replaced
channels.py    another number of input channels
stages.py      the model's parts in the order of depth
freezing.py    what stays as it is
rates.py       parameter groups by depth
unfreezing.py  more and more of it trained, on a schedule
layers.py      the table that tells all of that
wrappers.py    a model without what is wrapped round it
"""

from torchkeep.training.surgery.channels import InputLayer, adapt_channels, replace_input
from torchkeep.training.surgery.freezing import (
    freeze,
    freeze_all_but_head,
    freeze_stages,
    trainable,
    unfreeze,
    unfreeze_stages,
)
from torchkeep.training.surgery.heads import Head, head_names, replace_head
from torchkeep.training.surgery.layers import LayerRow, layer_table
from torchkeep.training.surgery.rates import parameter_groups
from torchkeep.training.surgery.stages import Stage, stages
from torchkeep.training.surgery.unfreezing import Schedule, check_schedule, unfreeze_at

__all__ = [
    "Head",
    "InputLayer",
    "LayerRow",
    "Schedule",
    "Stage",
    "adapt_channels",
    "check_schedule",
    "freeze",
    "freeze_all_but_head",
    "freeze_stages",
    "head_names",
    "layer_table",
    "parameter_groups",
    "replace_head",
    "replace_input",
    "stages",
    "trainable",
    "unfreeze",
    "unfreeze_at",
    "unfreeze_stages",
]
