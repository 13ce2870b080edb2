"""Which tensors of a model move, and which should: digests are certain, samples are cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.checkpointing.state.sharded import is_sharded, whole_of
from torchkeep.files import digest
from torchkeep.tensors import bytes_of, plain_on_cpu
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.wording import counted

NOT_HELD, NO_RATE = "not in the optimizer", "its rate is 0"
"""Why a parameter can't move."""


def split(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a model's tensors by name: the trainable parameters, and what should stay as it is.

    A buffer should if the parameters of its module are all frozen, or, where the module has none,
    those of the nearest module around it that has some. Other buffers are in neither.
    """
    trainable: dict[str, torch.Tensor] = {
        name: item for name, item in model.named_parameters() if item.requires_grad
    }
    frozen: dict[str, torch.Tensor] = {
        name: item for name, item in model.named_parameters() if not item.requires_grad
    }
    for name, item in model.named_buffers():
        if _is_frozen(model, name.rpartition(".")[0]):
            frozen[name] = item
    return trainable, frozen


def _is_frozen(model: nn.Module, path: str) -> bool:
    own = list(model.get_submodule(path).parameters(recurse=False))
    while not own and path:
        path = path.rpartition(".")[0]
        own = list(model.get_submodule(path).parameters())
    return bool(own) and not any(item.requires_grad for item in own)


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digest of each tensor's values."""
    return {
        name: digest(bytes_of(plain_on_cpu(whole_of(item))))
        for name, item in tensors.items()
        if item.layout == torch.strided and not item.is_meta
    }


class Samples:
    """Two elements of each tensor, kept as views, so that a look at them all is one operation.

    A tensor that is replaced by another, instead of being written to, is not seen here, nor one
    that is sharded over several processes.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._order = list(tensors)
        self._groups: dict[object, tuple[list[str], list[torch.Tensor]]] = {}
        for name, item in tensors.items():
            if item.layout != torch.strided or item.is_meta or not item.numel():
                continue
            if is_sharded(item):
                continue
            names, views = self._groups.setdefault((item.dtype, item.device), ([], []))
            for place in _places(item):
                names.append(name)
                views.append(item.detach()[place])
        self._seen = {key: torch.stack(views) for key, (_, views) in self._groups.items()}

    def moved(self) -> list[str]:
        """Return the names of tensors whose samples are not what they were."""
        found = []
        for key, (names, views) in self._groups.items():
            then, now = self._seen[key], torch.stack(views)
            same = (now == then) | ((now != now) & (then != then))
            if not same.all():
                found += [names[place] for place in (~same).nonzero().flatten().tolist()]
        return [name for name in self._order if name in set(found)]


def _places(tensor: torch.Tensor) -> list[tuple[int, ...]]:
    middle = tuple(side // 2 for side in tensor.shape)
    first = (0,) * tensor.ndim
    return [first] if middle == first else [first, middle]


def rate_of(optimizer: Optimizer, parameter: torch.Tensor) -> float | None:
    """Return the learning rate of a parameter; None if the optimizer does not have it."""
    for group in optimizer.param_groups:
        if any(item is parameter for item in group["params"]):
            return float(group["lr"])
    return None


def not_moving(causes: Mapping[str, str], num_trainable: int, num_steps: int) -> list[Finding]:
    """Return a finding if parameters did not move: an error if it is all of them.

    Args:
        causes: by the names of those that did not, why.
        num_trainable: how many are trainable.
        num_steps: how many steps were made.
    """
    if not causes:
        return []
    names: dict[str, list[str]] = {}
    for name, cause in causes.items():
        names.setdefault(cause, []).append(name)
    text = (
        f"{len(causes):,} of {counted(num_trainable, 'trainable parameter')} did not move in "
        f"{counted(num_steps, 'step')}: "
    )
    text += "; ".join(f"{listed(some)} ({cause})" for cause, some in names.items())
    advice = "Freeze what should stay; for the rest look at the optimizer and its rates."
    is_all = len(causes) == num_trainable
    return [Finding("not-moving", "error" if is_all else "warning", text, advice)]


def frozen_moves(names: Sequence[str], step: int) -> list[Finding]:
    """Return a warning if frozen tensors changed, by the names of those that did."""
    if not names:
        return []
    text = f"{counted(len(names), 'frozen tensor')} changed by step {step}: {listed(names)}"
    advice = (
        "Use torchkeep.training.freeze, which also stops BatchNorm's statistics, and make the "
        "optimizer of trainable(model)."
    )
    return [Finding("frozen-moves", "warning", text, advice)]
