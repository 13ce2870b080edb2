"""What is trained while somebody saves it: models, in one process or spread over ranks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset


def num_ranks() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that acts for all."""
    return num_ranks() == 1 or distributed.get_rank() == 0


class Tower(nn.Module):
    """A tower of square layers, each added to what goes through it."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(height))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[n, width]` for `[n, width]`."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) / len(self.layers)
        return x


class Transformer(nn.Module):
    """Blocks as GPT-2 has them, between an embedding and a head."""

    def __init__(self, num_blocks: int, width: int, num_words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_words, width)
        block = nn.TransformerEncoderLayer(
            width, max(width // 64, 1), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, num_blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, 64)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return `[n, length, 64]` for numbers of words, `[n, length]`."""
        return self.head(self.blocks(self.embed(words)))


class Repeated(Dataset[torch.Tensor]):
    """A few batches, over and over."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.batches[index % len(self.batches)]


@dataclass(slots=True)
class Job:
    """A model in training."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[torch.Tensor]
    device: torch.device

    def synchronize(self) -> None:
        """Wait for what was queued on the device, and for the other ranks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if num_ranks() > 1:
            distributed.barrier()

    def state(self) -> dict[str, Any]:
        """Return what is to be saved: the live tensors."""
        # As plain dicts: some releases' staging of DCP stumbles over others.
        return {"model": {**self.model.state_dict()}, "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the state by name."""
        state = self.state()
        moments = {
            f"optimizer.{index}.{name}": value
            for index, values in state["optimizer"]["state"].items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        return {**state["model"], **moments}


def spread_over_ranks(model: nn.Module, spread: str) -> nn.Module:
    """Return a model as the ranks train it together."""
    if num_ranks() == 1:
        return model
    if spread == "ddp":
        return DistributedDataParallel(model)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (num_ranks(),))
    stacks = [item for item in model.modules() if isinstance(item, nn.ModuleList)]
    for layer in (layer for stack in stacks for layer in stack):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def jobs(device: torch.device, spread: str, *, num_blocks: int, quick: bool) -> Iterator[Job]:
    """Yield what to train, each when its turn has come."""

    def job(name: str, model: nn.Module, batch: Callable[[], torch.Tensor]) -> Job:
        model = spread_over_ranks(model.to(device), spread)
        loader = DataLoader(Repeated([batch() for _ in range(4)]), batch_size=None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        return Job(name, model, optimizer, loader, device)

    scale = 16 if device.type == "cuda" else 1
    if quick:
        yield job("Transformer", Transformer(2, 32, 100), lambda: torch.randint(100, (2, 8)))
        yield job("small tensors", Tower(40, 20), lambda: torch.randn(8, 20))
        return
    yield job(
        "Transformer, AdamW",
        Transformer(num_blocks, 768, 8000),
        lambda: torch.randint(8000, (4 * scale, 48)),
    )
    if importlib.util.find_spec("torchvision"):
        import torchvision  # it takes a while

        yield job(
            "Wide ResNet 101, AdamW",
            torchvision.models.wide_resnet101_2(weights=None),
            lambda: torch.randn(4 * scale, 3, 96, 96),
        )
    yield job("small tensors, AdamW", Tower(2000, 141), lambda: torch.randn(128 * scale, 141))
