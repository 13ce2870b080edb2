"""What a report tells of a training run, as plain data.

Everything has a default that means "not known", and what is not known is left out of the page. All
texts may hold anything: they are escaped where the page is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torchkeep.errors import WrongArgument
from torchkeep.wording import counted

Severity = Literal["problem", "warning", "note"]
"""A result not to be trusted; something to look at; something good to know."""

Epoch = Mapping[str, object]
"""One epoch's values by name: `loss`, `val_loss`, `accuracy`, `lr`, `seconds`, whatever there is.

`epoch` is its number, by default its place counted from 1. A name with `val_` in front is the same
thing on the validation split. Names with `lr` are learning rates.
"""


@dataclass(frozen=True, slots=True)
class Best:
    """The epoch whose weights were kept."""

    metric: str
    """What was best: a name in the history, such as `val_accuracy`."""
    value: float
    """How good it was."""
    epoch: int
    """In which epoch, as the history counts them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was trained, on what, with what."""

    architecture: str = ""
    """The network, such as `resnet18`."""
    weights: str = ""
    """Where its first weights came from: a file, a name of timm's, random numbers."""
    data_folder: str = ""
    """Where the images lie."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Images by split (`train`, `val`), then by class."""
    preprocessing: Sequence[str] = ()
    """What was done to each image, one step each, in order."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What was chosen: batch size, optimizer, seed, ..."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions by package."""
    device: str = ""
    """What computed."""
    duration_s: float | None = None
    """How long the run took, in seconds."""
    git_revision: str = ""
    """The commit of the code that ran."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each class was taken for which.

    Raises:
        WrongArgument: the counts are not one row and one column per class, or one is negative.
    """

    classes: Sequence[str]
    """The class names by label."""
    counts: Sequence[Sequence[int]]
    """`[num_classes, num_classes]`: a row per true class, a column per predicted class."""

    def __post_init__(self) -> None:
        size = len(self.classes)
        for true, row in enumerate(self.counts):
            if len(row) != size:
                raise WrongArgument(
                    f"row {true} of the confusion matrix has {len(row)} counts for "
                    f"{counted(size, 'class')}",
                    advice="Give one count per class, a row per true class.",
                )
            if min(row, default=0) < 0:
                raise WrongArgument(
                    f"row {true} of the confusion matrix has a negative count: {min(row)}",
                    advice="Give how often each class was predicted.",
                )
        if len(self.counts) != size:
            raise WrongArgument(
                f"the confusion matrix has {counted(len(self.counts), 'row')} for "
                f"{counted(size, 'class')}",
                advice="Give one row per class.",
            )


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sample that was classified wrongly."""

    picture: bytes | None
    """A PNG or JPEG file, or None. Anything else is not shown."""
    file: str
    """The sample's file name."""
    true: str
    """The class it is of."""
    predicted: str
    """The class it was taken for."""
    probability: float
    """What the model gave the predicted class, from 0 to 1."""
    loss: float
    """The sample's loss."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of the network, or a part that is trained alike."""

    name: str
    """Its dotted name."""
    kind: str
    """Its class, such as `Conv2d`."""
    shape: tuple[int, ...]
    """Its weight's shape, `[out, in, ...]`; empty if it has none."""
    num_parameters: int
    """Elements of all its own parameters."""
    trainable: bool
    """Whether the optimizer changes it."""
    learning_rate: float | None = None
    """The rate that it starts with; None if it is frozen or has no parameters."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the run that its owner should know."""

    severity: Severity
    """How bad it is."""
    text: str
    """One sentence for a person."""
    advice: str = ""
    """What to do about it; may be empty."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment file of the run's model, and how it was proven."""

    name: str
    """The file's name."""
    kind: str
    """What it is, such as `onnx, int8`."""
    nbytes: int
    """Its size with what belongs to it, in bytes."""
    difference: float
    """The largest difference of an output from the original's, as a share of its largest value."""
    agreement: float | None
    """The share of inputs with the same class, from 0 to 1; None if it has no classes."""
    accuracy: float | None
    """On validation data, from 0 to 1; None if nobody looked."""
    original_accuracy: float | None
    """The original's on the same."""
    latency_s: float
    """Seconds of a call with one input, the median."""
    speedup: float
    """How many times as fast as the original in PyTorch that is."""
    proven_with: str
    """The inputs, in words."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """All that the page tells."""

    title: str
    """The page's heading."""
    result: str = ""
    """The result in one sentence; by default made of `best`."""
    best: Best | None = None
    """The epoch whose weights were kept; it is marked in the curves."""
    facts: Facts = field(default_factory=Facts)
    """What was trained, on what, with what."""
    history: Sequence[Epoch] = ()
    """What each epoch measured, in order."""
    confusion: Confusion | None = None
    """How often each class was taken for which, with the kept weights."""
    mistakes: Sequence[Mistake] | None = None
    """The worst ones, worst first; empty if there are none, None if nobody looked."""
    layers: Sequence[LayerRow] = ()
    """The network's layers, in order."""
    findings: Sequence[Finding] = ()
    """What was noticed; shown by severity."""
