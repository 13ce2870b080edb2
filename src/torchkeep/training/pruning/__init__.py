"""Networks made smaller before they are retrained: fewer channels, and masks made permanent.

What slims a network needs Torch-Pruning; loading and retraining a slimmed one does not.

slimming.py   fewer channels in every layer
channels.py   which of them go together, by Torch-Pruning
structure.py  what a slimmed network differs in from the one it was, as data
widths.py     how wide layers are
costs.py      size, work and time of a network
files.py      slimmed networks in files
masks.py      zeros of torch.nn.utils.prune, made permanent
"""

from torchkeep.formats.own.metadata import SLIMMED
from torchkeep.training.pruning.channels import Importance
from torchkeep.training.pruning.costs import Cost, Latency, compare_latency, cost_of
from torchkeep.training.pruning.files import (
    build_slim,
    find_structure,
    load_slim,
    load_slim_into,
    read_structure,
    save_slim,
)
from torchkeep.training.pruning.masks import (
    MaskedTensor,
    MaskReport,
    Unmasked,
    make_masks_permanent,
    unmasked,
)
from torchkeep.training.pruning.slimming import SlimReport, slim
from torchkeep.training.pruning.structure import SlimStructure, describe_structure, restructure

__all__ = [
    "SLIMMED",
    "Cost",
    "Importance",
    "Latency",
    "MaskReport",
    "MaskedTensor",
    "SlimReport",
    "SlimStructure",
    "Unmasked",
    "build_slim",
    "compare_latency",
    "cost_of",
    "describe_structure",
    "find_structure",
    "load_slim",
    "load_slim_into",
    "make_masks_permanent",
    "read_structure",
    "restructure",
    "save_slim",
    "slim",
    "unmasked",
]
