"""A training loop that runs in one process, or in several, and survives in both.

python examples/several_ranks.py RUN
torchrun --standalone --nproc-per-node 2 examples/several_ranks.py RUN [--shard]
"""

from __future__ import annotations

import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import torchkeep

run, *options = sys.argv[1:]
torch.manual_seed(0)
model: nn.Module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))
data = TensorDataset(torch.randn(500, 8), torch.randint(0, 3, (500,)))

rank, num_ranks, sampler = 0, int(os.environ.get("WORLD_SIZE", "1")), None
if num_ranks > 1:  # torchrun has started several of us
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mesh = distributed.device_mesh.init_device_mesh("cpu", (num_ranks,))
    model = fully_shard(model, mesh=mesh) if options else DistributedDataParallel(model)
    sampler = DistributedSampler(data)
    torch.manual_seed(rank)  # each drops other units

optimizer = torch.optim.AdamW(model.parameters())
loader = DataLoader(data, 25, sampler=sampler, shuffle=sampler is None)
with torchkeep.Checkpointer(run, model=model, optimizer=optimizer, every_steps=7) as ckpt:
    if ckpt.resumed_from and rank == 0:
        print("goes on from", ckpt.resumed_from.path.name)
    for epoch in ckpt.epochs(3):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for inputs, labels in ckpt.batches(loader):
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
            if os.environ.get("DIE_AT") == f"{ckpt.num_steps}":
                os.kill(os.getpid(), 9)
    if rank == 0:
        print("finished after step", ckpt.num_steps)
if num_ranks > 1:
    distributed.destroy_process_group()
