"""Which tensors of a model move, and which should: digests are certain, samples are cheap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from torchkeep.files import digest
from torchkeep.tensors import bytes_of, plain_on_cpu


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
        name: digest(bytes_of(plain_on_cpu(item)))
        for name, item in tensors.items()
        if item.layout == torch.strided and not item.is_meta
    }


class Samples:
    """Two elements of each tensor, kept as views, so that a look at them all is one operation.

    A tensor that is replaced by another, instead of being written to, is not seen here.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._order = list(tensors)
        self._groups: dict[object, tuple[list[str], list[torch.Tensor]]] = {}
        for name, item in tensors.items():
            if item.layout != torch.strided or item.is_meta or not item.numel():
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
