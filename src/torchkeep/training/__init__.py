"""Plain functions for training, each usable alone in somebody's own loop.

What needs torchvision is in `torchkeep.training.data`.
"""

from torchkeep.modes import evaluating, training
from torchkeep.training.loop import Evaluation, evaluate, train_epoch
from torchkeep.training.surgery import Head, freeze, replace_head, trainable, unfreeze

__all__ = [
    "Evaluation",
    "Head",
    "evaluate",
    "evaluating",
    "freeze",
    "replace_head",
    "train_epoch",
    "trainable",
    "training",
    "unfreeze",
]
