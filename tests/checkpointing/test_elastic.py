"""Ranks that torchrun starts again go on from the last checkpoint, as many or fewer.

torchrun has to make a new store for each start (`TORCH_DISABLE_SHARE_RDZV_TCP_STORE`): with the one
that it shares by default gloo finds the addresses of those who died (pytorch#135712).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from torchkeep.checkpointing import list_checkpoints

PROGRAM = """
import os, signal, sys, time
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
import torchkeep

run, dies_at, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
distributed.init_process_group("gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = TensorDataset(torch.arange(96.0)[:, None])
loader = DataLoader(data, 2, sampler=DistributedSampler(data, seed=3))
options = {"every_steps": 2, "keep_last": None, "allow_inexact": True, "timeout_s": 60}
with torchkeep.Checkpointer(run, model=model, optimizer=optimizer, **options) as ckpt:
    begun = ckpt.num_steps
    for _ in ckpt.epochs(1):
        for (inputs,) in ckpt.batches(loader):
            model(inputs / 96).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
            time.sleep(pause)
            with open(f"{run}.seen", "a") as seen:
                print(begun, ckpt.num_steps, *map(int, inputs.flatten()), file=seen)
            if rank == 1 and ckpt.num_steps == dies_at and os.environ[
                "TORCHELASTIC_RESTART_COUNT"
            ] == "0":
                ckpt.wait()
                os.kill(os.getpid(), signal.SIGKILL)
if rank == 0:
    print(f"{size} ranks went on after step {begun}, {len(ckpt.inexact)} reasons", flush=True)
distributed.destroy_process_group()
"""


def torchrun(program: Path, *words: str, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "2", *words]
    settings = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def samples_of(run: Path) -> Counter[int]:
    """Return how often each sample was seen in a step that counts.

    A step that was made again after a restart counts once.
    """
    lines = [list(map(int, x.split())) for x in Path(f"{run}.seen").read_text().splitlines()]
    last = max(begun for begun, *_ in lines)
    return Counter(
        index for begun, step, *some in lines if begun == last or step <= last for index in some
    )


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", f"{pid}"], stdout=subprocess.PIPE, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_ranks_that_are_started_again_go_on_by_themselves(tmp_path, program):
    run, log = tmp_path / "run", tmp_path / "log"
    words = ["--standalone", "--nproc-per-node", "2", str(program), str(run), "7", "0"]
    assert torchrun(program, *words, log=log).wait(120) == 0, log.read_text()
    assert "2 ranks went on after step 6, 0 reasons" in log.read_text()
    assert list_checkpoints(run)[-1].step == 24
    assert samples_of(run) == Counter(range(96))


def test_fewer_ranks_go_on_when_a_machine_is_gone(tmp_path, program):
    """Two agents, as on two machines; one is killed with its rank, and the other goes on alone."""
    run, logs = tmp_path / "run", [tmp_path / "log-0", tmp_path / "log-1"]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-id", "r", "--nproc-per-node", "1"]
    words += ["--rdzv-conf", "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=2"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{port}", str(program), str(run), "0", "0.2"]
    agents = [torchrun(program, *words, log=logs[0])]
    time.sleep(2)  # so that the first one has the store, which must not die
    agents.append(torchrun(program, *words, log=logs[1]))
    deadline = time.monotonic() + 90
    while len(list_checkpoints(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in (agents[1].pid, *children_of(agents[1].pid)):
        os.kill(pid, signal.SIGKILL)
    agents[1].wait()
    assert agents[0].wait(180) == 0, logs[0].read_text()
    told = logs[0].read_text()
    assert "1 ranks went on after step" in told
    assert "1 reasons" in told
    assert "2 ranks trained together, and now it is 1" in told
    assert samples_of(run) == Counter(range(96))
