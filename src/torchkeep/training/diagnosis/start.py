"""What is wrong with a model and its optimizer before the first step.

What runs the model does so on a deep copy, and puts every generator back: nothing of the model,
its BatchNorm statistics, its gradients and the optimizer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from torchkeep.modes import training
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.training.diagnosis.trial import bare, to_model, trial
from torchkeep.training.loop import Loss
from torchkeep.wording import counted

Classes = int | Sequence[str] | Mapping[str, int]
"""How many classes there are, their names by label, or a `class_to_idx`."""


# --- Modes and parameters ----------------------------------------------------------------------


def modes(model: nn.Module) -> list[Finding]:
    """Return what modules are in a mode in which they don't train as they should.

    Call it where training begins: in evaluation mode as a whole the model should not be.
    """
    if not model.training:
        text = "the model is in evaluation mode: Dropout and BatchNorm work as in prediction"
        return [Finding("eval-mode", "warning", text, "Call model.train() before each epoch.")]
    found = []
    if drifting := [name for name, norm in _norms(model) if norm.training and _is_frozen(norm)]:
        text = (
            f"the statistics of {counted(len(drifting), 'BatchNorm')} with frozen parameters "
            f"follow the data: {listed(drifting)}"
        )
        advice = "Use torchkeep.training.freeze, which keeps them in evaluation mode."
        found.append(Finding("frozen-batchnorm", "warning", text, advice))
    if asleep := [name for name, norm in _norms(model) if not norm.training and _trains(norm)]:
        text = (
            f"in evaluation mode, with trainable parameters: {counted(len(asleep), 'BatchNorm')}, "
            f"{listed(asleep)}"
        )
        advice = "Call model.train(); after freeze, unfreeze these before."
        found.append(Finding("eval-mode", "warning", text, advice))
    return found


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), torch.Tensor)
    ]


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(item.requires_grad for item in own)


def _trains(module: nn.Module) -> bool:
    return any(item.requires_grad for item in module.parameters(recurse=False))


def trainable_parameters(model: nn.Module) -> list[Finding]:
    """Return an error if no parameter of the model is trainable."""
    parameters = list(model.parameters())
    if any(item.requires_grad for item in parameters):
        return []
    text = f"none of the model's {counted(len(parameters), 'parameter')} is trainable"
    advice = "Use unfreeze(model, ['name of the head']), before the optimizer is made."
    return [Finding("no-trainable", "error", text, advice)]


def optimizer_parameters(model: nn.Module, optimizer: Optimizer) -> list[Finding]:
    """Return trainable parameters that the optimizer lacks, and others that it has.

    A parameter that isn't the model's (error) mostly was, before a head was replaced. A frozen one
    (note) is left alone as long as it has no gradient.
    """
    names = {id(item): name for name, item in bare(model).named_parameters()}
    held = [item for group in optimizer.param_groups for item in group["params"]]
    ids = {id(item) for item in held}
    found = []
    trainable = [(name, p) for name, p in bare(model).named_parameters() if p.requires_grad]
    if missing := [name for name, item in trainable if id(item) not in ids]:
        text = (
            f"{len(missing):,} of {counted(len(trainable), 'trainable parameter')} are not in "
            f"the optimizer: {listed(missing)}"
        )
        advice = "Make the optimizer after heads are replaced and layers unfrozen."
        found.append(Finding("not-in-optimizer", "error", text, advice))
    if foreign := [list(item.shape) for item in held if id(item) not in names]:
        text = (
            f"the optimizer has {counted(len(foreign), 'parameter')} that the model lacks, of "
            f"shape {listed(foreign)}"
        )
        advice = "Make the optimizer after the model is changed, from this very model."
        found.append(Finding("foreign-in-optimizer", "error", text, advice))
    frozen = [names[id(p)] for p in held if id(p) in names and not p.requires_grad]
    if frozen:
        text = f"the optimizer has {counted(len(frozen), 'frozen parameter')}: {listed(frozen)}"
        advice = "Give it trainable(model): a gradient that is left over would still move them."
        found.append(Finding("frozen-in-optimizer", "note", text, advice))
    return found


# --- Outputs -----------------------------------------------------------------------------------


def outputs(
    model: nn.Module, inputs: torch.Tensor, classes: Classes, *, takes_tuples: bool = False
) -> list[Finding]:
    """Return what is wrong with what the model makes of a batch: its shape, NaN, always the same.

    Args:
        model: in training mode for this, on a copy.
        inputs: a batch `[n, ...]`, wherever it is.
        classes: how many outputs there should be.
        takes_tuples: a tuple is as good, of the main outputs and auxiliary ones.
    """
    found = _class_numbers(classes)
    with trial(bare(model)) as copied, training(copied), torch.no_grad():
        made = copied(to_model(copied, inputs, inputs)[0])
        is_silent = _has_silent_head(copied)
    if takes_tuples and isinstance(made, tuple):
        made = made[0]
    if not isinstance(made, torch.Tensor):
        text = f"the model returns a {type(made).__name__}, and no tensor"
        advice = "Take the outputs out of it: [0], .logits, or aux_logits=False for Inception."
        return [*found, Finding("num-outputs", "error", text, advice)]
    found += _shape_of(made, len(inputs), count_of(classes))
    if not torch.isfinite(made).all():
        bad = int((~torch.isfinite(made)).sum())
        text = f"{bad:,} of {counted(made.numel(), 'output')} are NaN or infinite"
        advice = "Look at the inputs and at the weights for NaN; with float16, use bfloat16."
        found.append(Finding("outputs", "error", text, advice))
    elif not is_silent and _is_constant(made) and not _is_constant(inputs):
        text = f"the outputs are the same for all {len(made)} samples, which differ"
        advice = "Look for a dead layer, weights of zeros, or inputs far out of range."
        found.append(Finding("outputs", "error", text, advice))
    return found


def count_of(classes: Classes) -> int:
    """Return how many classes there are."""
    return classes if isinstance(classes, int) else len(classes)


def _class_numbers(classes: Classes) -> list[Finding]:
    """Return an error if a `class_to_idx` does not number its classes from 0 without gaps."""
    if not isinstance(classes, Mapping):
        return []
    numbers = sorted(classes.values())
    if numbers == list(range(len(numbers))):
        return []
    text = (
        f"class_to_idx numbers {counted(len(numbers), 'class')} from {numbers[0]} to {numbers[-1]}"
    )
    advice = "Labels are places in a list of class names: 0 and up, each once."
    return [Finding("class-numbers", "error", text, advice)]


def _shape_of(made: torch.Tensor, number: int, num_classes: int) -> list[Finding]:
    shape = list(made.shape)
    if made.ndim != 2 or shape[0] != number:
        text = f"the outputs have the shape {shape} and not [{number}, {num_classes}]"
        return [Finding("num-outputs", "error", text, "Is a pooling layer or the head missing?")]
    if shape[1] == num_classes:
        return []
    text = f"the model has {counted(shape[1], 'output')} for {counted(num_classes, 'class')}"
    advice = f"Use torchkeep.training.replace_head(model, {num_classes}), then make the optimizer."
    return [Finding("num-outputs", "error", text, advice)]


def _is_constant(batch: torch.Tensor) -> bool:
    """Tell whether all samples are the same, but for rounding; a single one is not."""
    if len(batch) < 2:
        return False
    flat = batch.detach().flatten(1).double()
    spread = (flat - flat[:1]).abs().max()
    return bool(spread <= 1e-6 * flat.abs().max())


def _has_silent_head(model: nn.Module) -> bool:
    """Tell whether the last layer's weight is zero, as some networks begin: that trains well."""
    layers = [item for item in model.modules() if isinstance(item, nn.Linear | nn.Conv2d)]
    return bool(layers) and not layers[-1].weight.any()


def initial_loss(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    loss_fn: Loss = functional.cross_entropy,
) -> list[Finding]:
    """Return a finding if the loss of a model with a fresh head is far from `ln(num_classes)`.

    That is the loss of one who knows nothing and says so. A head that was trained before has
    another one: leave the check out then.

    Args:
        model: in training mode for this, on a copy.
        inputs: a batch `[n, ...]`, wherever it is.
        labels: `[n]`.
        num_classes: how many classes there are.
        loss_fn: what is trained with; it gives the mean cross-entropy per sample.
    """
    with trial(bare(model)) as copied, training(copied), torch.no_grad():
        there, answers = to_model(copied, inputs, labels)
        loss = loss_fn(copied(there), answers).item()
    chance = log(num_classes)
    seen = f"the loss at the start is {loss:.3g}, and ln({num_classes}) = {chance:.3g} is expected"
    if not loss <= chance + max(1.0, 0.75 * chance):
        finding = Finding("initial-loss", "warning", seen, _advice_high(loss, chance, len(labels)))
        return [finding]
    if loss < 0.4 * chance:
        advice = "Is the head already trained? If not, does the input show the label?"
        return [Finding("initial-loss", "note", seen, advice)]
    return []


def _advice_high(loss: float, chance: float, number: int) -> str:
    if abs(loss / number - chance) < 0.3 * chance and number > 2:
        return "It is a sum over the batch: use reduction='mean', or a smaller rate."
    return (
        "Is the head fresh and its layer not too large in its weights, are inputs normalised, and "
        "are outputs logits, without softmax?"
    )
