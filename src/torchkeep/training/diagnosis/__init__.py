"""What usually goes wrong when a network is (re)trained, looked for before and while it runs.

Every check is a function that returns a list of findings, empty if all is well. A `Finding` says
what was seen, with figures, and what to try.

    before      labels            labels_out_of_range, constant_labels, empty_classes,
                                  classes_apart, uneven_classes
                image files       look_at, then broken_images, tiny_images, conflicting_labels,
                                  duplicates
                data sets         dataset_items, shared_items
                a batch           wrong_shape, wrong_dtype, wrong_device, not_finite,
                                  constant_images, not_normalised
                the model         modes, trainable_parameters, optimizer_parameters, outputs,
                                  initial_loss, gradients, overfit_one_batch
                the rate          find_learning_rate, then judge_learning_rate
    in running  steps and epochs  Watch: a parameter that doesn't move, a frozen tensor that does,
                                  exploding and vanishing gradients, NaN, a loss that doesn't fall,
                                  overfitting, accuracy of guessing

`examine_labels`, `examine_samples`, `examine_batch` and `examine_start` run those of a kind.
Nothing here changes a model, an optimizer or a random generator: what has to run a model runs a
deep copy.

findings.py       what was found, as data
examining.py      all checks of a kind in one call
trial.py          trying something on a copy
data.py           labels and data sets
pictures.py       image files
inputs.py         a batch
start.py          a model and its optimizer before the first step
gradients.py      its gradients
one_batch.py      whether it can learn one batch by heart
learning_rate.py  a range test
watch.py          while it runs
movement.py       which tensors move
norms.py          how large the gradients are
epochs.py         what the losses of the epochs tell
"""

from torchkeep.training.diagnosis.data import (
    classes_apart,
    constant_labels,
    dataset_items,
    empty_classes,
    labels_out_of_range,
    shared_items,
    uneven_classes,
)
from torchkeep.training.diagnosis.examining import (
    examine_batch,
    examine_labels,
    examine_samples,
    examine_start,
)
from torchkeep.training.diagnosis.findings import Finding, Severity, worst_first
from torchkeep.training.diagnosis.gradients import gradients
from torchkeep.training.diagnosis.inputs import (
    constant_images,
    not_finite,
    not_normalised,
    wrong_device,
    wrong_dtype,
    wrong_shape,
)
from torchkeep.training.diagnosis.learning_rate import (
    RateCurve,
    find_learning_rate,
    judge_learning_rate,
)
from torchkeep.training.diagnosis.one_batch import OneBatch, overfit_one_batch
from torchkeep.training.diagnosis.pictures import (
    Picture,
    broken_images,
    conflicting_labels,
    duplicates,
    look_at,
    tiny_images,
)
from torchkeep.training.diagnosis.start import (
    initial_loss,
    modes,
    optimizer_parameters,
    outputs,
    trainable_parameters,
)
from torchkeep.training.diagnosis.watch import Watch

__all__ = [
    "Finding",
    "OneBatch",
    "Picture",
    "RateCurve",
    "Severity",
    "Watch",
    "broken_images",
    "classes_apart",
    "conflicting_labels",
    "constant_images",
    "constant_labels",
    "dataset_items",
    "duplicates",
    "empty_classes",
    "examine_batch",
    "examine_labels",
    "examine_samples",
    "examine_start",
    "find_learning_rate",
    "gradients",
    "initial_loss",
    "judge_learning_rate",
    "labels_out_of_range",
    "look_at",
    "modes",
    "not_finite",
    "not_normalised",
    "optimizer_parameters",
    "outputs",
    "overfit_one_batch",
    "shared_items",
    "tiny_images",
    "trainable_parameters",
    "uneven_classes",
    "worst_first",
    "wrong_device",
    "wrong_dtype",
    "wrong_shape",
]
