"""A model of uneven shapes on some ranks: trained and saved, or put back, and told of.

It writes the digests of the whole tensors to FOLDER/NAME.json.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from checkpointing.gang import join
from torchkeep.checkpointing import Checkpointer
from torchkeep.checkpointing.state.encoding import encode, fingerprint


@dataclass(frozen=True)
class Place:
    """One rank of a run."""

    layout: str
    """`plain`, `ddp`, `fsdp`, or `hsdp`: sharded within pairs of ranks, and alike in all pairs."""
    ranks: int
    rank: int = 0

    @property
    def name(self) -> str:
        return f"{self.layout}-{self.ranks}"


class Uneven(nn.Module):
    """Parameters that no number of ranks divides, fewer rows than ranks, and what else there is."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(2, 5)
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.short = nn.Linear(7, 9, dtype=torch.bfloat16)
        self.last = nn.Linear(9, 3, bias=False)
        self.register_buffer("table", torch.arange(6, dtype=torch.int32).view(2, 3))
        self.register_buffer("cache", torch.ones(3), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(inputs + self.rows(torch.arange(2)).sum(0)))
        return self.last(self.short(hidden.bfloat16()).float()) + self.table.sum()


def spread(place: Place) -> nn.Module:
    """Return the model as the ranks of a layout have it."""
    torch.manual_seed(4)
    model = Uneven()
    if place.layout == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if place.layout in ("fsdp", "hsdp"):
        shape, names = ((place.ranks,), ("shard",))
        if place.layout == "hsdp":
            shape, names = ((place.ranks // 2, 2), ("replicate", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for part in (model.rows, model.short):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def parts_of(place: Place) -> dict[str, Any]:
    model = spread(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, amsgrad=True)
    return {"model": model, "optimizer": optimizer, "extra": {"count": 3, "t": torch.ones(2)}}


def whole(value: Any) -> Any:
    """Return a state with whole tensors; all ranks call it."""
    if isinstance(value, torch.Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value.detach()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def digests(parts: dict[str, Any]) -> dict[str, str]:
    """Return the digest of each whole tensor, by the names that they have without wrappers."""
    model = parts["model"]
    names = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    state = whole(parts["optimizer"].state_dict()["state"])
    found = {f"model/{k.removeprefix('module.')}": v for k, v in whole(model.state_dict()).items()}
    found |= {f"{names[i]}/{key}": v for i, some in state.items() for key, v in some.items()}
    return {name: fingerprint(tensor) for name, tensor in sorted(found.items())}


def main(place: Place, folder: Path, saved: tuple[str, ...], store: str = "") -> None:
    """Save a run to FOLDER/NAME if `saved` is empty; else put back each of these."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if place.layout != "plain":
        join(place.rank, place.ranks, store)
    found = {name: put_back(place, folder / name) for name in saved} or save(place, folder)
    if place.rank == 0:
        (folder / f"{place.name}{'-back' * bool(saved)}.json").write_text(json.dumps(found))
    if place.layout != "plain":
        distributed.destroy_process_group()


def save(place: Place, folder: Path) -> dict[str, str]:
    parts = parts_of(place)
    torch.manual_seed(place.rank)
    with Checkpointer(folder / place.name, **parts, seed=1, timeout_s=60) as ckpt:
        for _ in ckpt.epochs(2):
            parts["model"](torch.randn(4, 5)).square().mean().backward()
            parts["optimizer"].step()
            parts["optimizer"].zero_grad()
            ckpt.step()
        return digests(parts)


def put_back(place: Place, run: Path) -> dict[str, str]:
    parts = parts_of(place)
    parts["extra"] = {"count": 0, "t": torch.zeros(2)}
    ckpt = Checkpointer(run, **parts, allow_inexact=True, timeout_s=60)
    ckpt.restore()
    assert encode(parts["extra"])[1]["count"] == 3
    assert parts["extra"]["t"].tolist() == [1, 1]
    ckpt.close()
    return digests(parts)
