"""TorchRL: actors, replay buffers, trainer states."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal

from frameworks.expected import expecting


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    network = nn.Sequential(MLP(3, 4, num_cells=[8]), NormalParamExtractor())
    module = TensorDictModule(network, ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(module, ["loc", "scale"], distribution_class=TanhNormal)
    path = expecting(folder / "actor_whole.pt", role="module", verdict="needs-trust")
    torch.save(actor, path)
    path = expecting(folder / "actor.pt", role="state_dict", state_dicts={"": "model"})
    torch.save(actor.state_dict(), path)
    buffer = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
    buffer.extend(TensorDict({"observation": torch.ones(4, 3)}, [4]))
    torch.save(buffer.state_dict(), expecting(folder / "buffer.pt"))
    buffer.dumps(folder / "buffer")
    checkpoint = {"policy": actor.state_dict(), "buffer": buffer.state_dict(), "frames": 100}
    torch.save(checkpoint, expecting(folder / "checkpoint.pt", role="checkpoint"))
