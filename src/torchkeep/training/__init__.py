"""Plain functions for training, each usable alone in somebody's own loop.

What needs torchvision is in `torchkeep.training.data` and in what uses it, and is not imported
here.

retraining.py  the whole flow, from weights and images to a model and its run
preparing.py   what it needs: data, network, optimizer, loaders, loss
starting.py    a network to start from
pretrained.py  one with the weights of its library
fitting.py     whether it takes the images, and gives an output per class
data/          data by its name, prepared and augmented
surgery/       what a network ends in, what of it is trained, and how fast
pruning/       networks made smaller before they are retrained
optimizing.py  optimizers and learning rates by name
loop.py        one epoch
distributed/   several processes that train one network
averaging.py   a moving average of the weights
quantizing.py  computing as in 8 bits while training
evaluation.py  how good a classifier is
diagnosis/     what usually goes wrong
checkup.py     these checks on a training that has been prepared
classifier.py  a classifier in a file of its own
prediction.py  what it says of images
settings.py    how a network is retrained, as data
machine.py     what it is computed on
records/       what a run leaves in its folder, besides checkpoints and models
"""

from torchkeep.modes import evaluating, training
from torchkeep.training.evaluation import Answers, Evaluation, answers, evaluate
from torchkeep.training.loop import train_epoch
from torchkeep.training.optimizing import factor, make_optimizer, set_rates
from torchkeep.training.quantizing import fake_quantize, input_ranges, observe_ranges
from torchkeep.training.settings import Settings
from torchkeep.training.surgery import (
    Head,
    InputLayer,
    LayerRow,
    Schedule,
    Stage,
    check_schedule,
    freeze,
    freeze_all_but_head,
    freeze_stages,
    head_names,
    layer_table,
    parameter_groups,
    replace_head,
    replace_input,
    stages,
    trainable,
    unfreeze,
    unfreeze_at,
    unfreeze_stages,
)

__all__ = [
    "Answers",
    "Evaluation",
    "Head",
    "InputLayer",
    "LayerRow",
    "Schedule",
    "Settings",
    "Stage",
    "answers",
    "check_schedule",
    "evaluate",
    "evaluating",
    "factor",
    "fake_quantize",
    "freeze",
    "freeze_all_but_head",
    "freeze_stages",
    "head_names",
    "input_ranges",
    "layer_table",
    "make_optimizer",
    "observe_ranges",
    "parameter_groups",
    "replace_head",
    "replace_input",
    "set_rates",
    "stages",
    "train_epoch",
    "trainable",
    "training",
    "unfreeze",
    "unfreeze_at",
    "unfreeze_stages",
]
