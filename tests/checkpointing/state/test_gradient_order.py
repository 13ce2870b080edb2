"""A resumed DDP adds gradients up in the order of the first run, wherever it is in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from checkpointing.gang import on_ranks
from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.checkpointing.state.encoding import fingerprint

SIZES = ((5, 65), (65, 257), (257, 129), (129, 3))


class Words(nn.Module):
    """Its embedding has sparse gradients."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.words, self.rest = nn.Embedding(40, 5, sparse=True), rest

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.rest(self.words((inputs.abs() * 7).long()[:, 0] % 40))


class Holder(nn.Module):
    """It is no DDP, and has one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)


def spread(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(*size) for size in SIZES))
    model: nn.Module = Words(layers) if kind == "sparse" else layers
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.02)
    if kind == "compiled":
        torch._dynamo.config.optimize_ddp = False
        return torch.compile(ddp, backend="eager")
    return Holder(ddp) if kind == "held" else ddp


def train(rank: int, run: Path, kind: str, stops: list[int]) -> str:
    """Train until the last of some steps, with a new program after each of them."""
    for stop in stops:
        model = spread(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with Checkpointer(run, model=model, optimizer=optimizer, timeout_s=30) as ckpt:
            for _ in ckpt.epochs(stop):
                generator = torch.Generator().manual_seed(1_000 * ckpt.num_steps + rank)
                model(torch.randn(4, 5, generator=generator)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.step()
    distributed.barrier()
    return fingerprint(dict(model.state_dict()))


@pytest.mark.parametrize("kind", ["bare", "held", "compiled", "sparse"])
def test_a_resume_on_three_ranks_is_exact(tmp_path, kind):
    expected = on_ranks(3, train, tmp_path / "expected", kind, [6])
    assert on_ranks(3, train, tmp_path / "found", kind, [3, 6]) == expected


def train_fixed(rank: int, run: Path) -> list[str]:
    ddp = DistributedDataParallel(nn.Linear(2, 2), static_graph=True)
    with Checkpointer(run, model=Holder(ddp), timeout_s=30) as ckpt:
        for _ in ckpt.epochs(1):
            ckpt.step()
    return [reason for item in list_checkpoints(run) for reason in item.inexact]


@pytest.mark.parametrize(("size", "number"), [(2, 0), (3, 1)])
def test_a_graph_that_is_said_to_be_fixed_is_told_of(tmp_path, size, number):
    for reasons in on_ranks(size, train_fixed, tmp_path):
        assert len(reasons) == number
        assert all("static_graph=True" in reason for reason in reasons)
