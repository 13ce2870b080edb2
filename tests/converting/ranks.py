"""Ranks of a run with PyTorch's own engine: what they save, and what they load."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.complex64,
]
SHAPES = {"uneven": (7, 3), "few": (2, 5), "one": (1, 4), "row": (8,), "box": (5, 6, 4)}
"""With three ranks or more, the last ones have less of some, and nothing of others."""


def full_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of all dtypes and shapes, the same in each process."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            bits = torch.randint(0, 2, shape, generator=generator) * 3 + torch.arange(shape[-1])
            key = f"{name}.{str(dtype).removeprefix('torch.')}"
            made[key] = (
                bits.to(dtype) if dtype != torch.complex64 else torch.complex(bits / 2, -bits / 1)
            )
    return made


def placed(full: torch.Tensor, mesh: DeviceMesh, dim: int) -> DTensor:
    """Return a tensor of which this rank has what FSDP2 or a column-wise split would give it."""
    world, rank = mesh.size(), mesh.get_local_rank()
    chunks = [*torch.chunk(full, world, dim), *[full.narrow(dim, 0, 0)] * world]
    local, shape, stride = chunks[rank].clone(), full.shape, full.stride()
    return DTensor.from_local(local, mesh, [Shard(dim)], shape=shape, stride=stride)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def save(rank: int, folder: Path) -> None:
    """Save a model and its optimizer under FSDP2, and tensors of all kinds; and the full ones."""
    mesh = _mesh()
    net = network()
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.arange(24.0).view(4, 6)).square().sum().backward()
    optimizer.step()
    model, optim = get_state_dict(net, optimizer)
    tensors = full_tensors()
    state = {
        "model": model,
        "optim": optim,
        "epoch": 3,
        "rows": {key: placed(full, mesh, 0) for key, full in tensors.items()},
        "columns": {
            key: placed(full, mesh, full.dim() - 1)
            for key, full in tensors.items()
            if full.dim() > 1
        },
        "copies": DTensor.from_local(torch.arange(4.0), mesh, [Replicate()]),
    }
    dcp.save(state, checkpoint_id=folder / "dcp")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optim = get_state_dict(net, optimizer, options=options)
    if rank == 0:
        torch.save({"model": model, "optim": optim}, folder / "full.pth")


def load(rank: int, folder: Path) -> None:
    """Load a checkpoint that torchkeep wrote, into tensors of this world size, and compare."""
    mesh = _mesh()
    tensors = full_tensors()
    for key in ("rows", "columns"):
        wanted = {name: it for name, it in tensors.items() if key == "rows" or it.dim() > 1}
        for dim in (0, -1):
            state = {
                key: {
                    name: placed(torch.zeros_like(it), mesh, dim % it.dim())
                    for name, it in wanted.items()
                }
            }
            dcp.load(state, checkpoint_id=folder / "dcp")
            for name, full in wanted.items():
                expected = placed(full, mesh, dim % full.dim()).to_local()
                found = state[key][name].to_local()
                assert found.view(torch.uint8).equal(expected.view(torch.uint8)), (key, name, dim)
    net = network()
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    model, optim = get_state_dict(net, optimizer)
    state = {"model": model, "optim": optim, "epoch": 0}
    dcp.load(state, checkpoint_id=folder / "dcp")
    full = torch.load(folder / "full.pth")
    assert state["epoch"] == 3
    for key, it in full["model"].items():
        found = state["model"][key]
        assert (found.full_tensor() if isinstance(found, DTensor) else found).equal(it), key
    for key, values in full["optim"]["state"].items():
        for name, it in values.items():
            found = state["optim"]["state"][key][name]
            assert (found.full_tensor() if isinstance(found, DTensor) else found).equal(it), key


def _mesh() -> DeviceMesh:
    warnings.simplefilter("ignore")
    return init_device_mesh("cpu", (dist.get_world_size(),))
