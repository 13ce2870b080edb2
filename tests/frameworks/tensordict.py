"""TensorDict: dictionaries of tensors, tensor classes, their modules, memory maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from tensordict import NonTensorData, TensorDict, tensorclass
from tensordict.nn import TensorDictModule, TensorDictParams

from frameworks.expected import expecting
from frameworks.networks import SmallNet


@tensorclass
class Sample:
    image: torch.Tensor
    label: int


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    table = TensorDict({"a": torch.ones(3, 2), "b": {"c": torch.zeros(3)}}, batch_size=[3])
    facts = {"verdict": "needs-trust"}
    torch.save(table, expecting(folder / "table.pt", **facts))
    torch.save(table.to_dict(), expecting(folder / "dict.pt", verdict="data-only"))
    torch.save(table.state_dict(), expecting(folder / "state.pt"))
    torch.save(Sample(torch.ones(2), 3, batch_size=[]), expecting(folder / "class.pt", **facts))
    torch.save(NonTensorData("text"), expecting(folder / "non_tensor.pt", **facts))
    weights = TensorDict.from_module(SmallNet())
    torch.save(weights, expecting(folder / "weights.pt", **facts))
    torch.save(TensorDictParams(weights), expecting(folder / "parameters.pt", **facts))
    module = TensorDictModule(SmallNet(), ["image"], ["score"])
    torch.save(module, expecting(folder / "module.pt", role="module", **facts))
    table.memmap(folder / "memmap")
    table.consolidate(folder / "consolidated.td")
