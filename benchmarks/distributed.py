"""What several ranks need to save and load together, beside PyTorch's own DCP; a Markdown table.

    python benchmarks/distributed.py                   1, 2 and 4 ranks, 400 MB: ten minutes
    python benchmarks/distributed.py --quick           a few MB: to see that it works
    python benchmarks/distributed.py --ranks 2 --mb 2000

The state is a tower of square layers with the moments of AdamW, under DDP (each rank has all of it)
or FSDP2 (each has a piece), over gloo, all ranks on this machine. A save begins when all ranks are
there, and ends when the last one is done and everything is synced; a load likewise, into memory
that is there already, from a file that the system has in its cache. Contestants take turns, in an
order that is drawn anew for each round; numbers are medians.

    one process    what torchkeep needs when the first rank saves everything alone
    torchkeep      all ranks together: digests of every tensor compared and kept
    DCP            torch.distributed.checkpoint.save, and load: no digests
    DCP, HF        the same with its writer and reader of safetensors shards

Ratios are to `one process` of the same number of ranks, and to DCP of the same layout.
"""

# ruff: noqa: D102  what a contestant does is said once, in `Contest.contestants`

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from save_load import SETTLE_S, machine, markdown
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torchkeep.checkpointing import capture, restore
from torchkeep.checkpointing.layout import read_part, write_part
from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.checkpointing.state.encoding import encode
from torchkeep.checkpointing.state.sharded import Part, local_of, part_of

FACTS = {
    "serial": 1,
    "step": 1,
    "epoch": 1,
    "batch": 0,
    "metrics": {},
    "inexact": [],
    "date": "2026-01-01T00:00:00+00:00",
}
SPREADS = ("ddp", "fsdp")
NUM_LAYERS = 24


def trained(spread: str, nbytes: int) -> dict[str, Any]:
    """Return a model and an optimizer that has made a step: so many bytes over all ranks."""
    width = int((nbytes / 3 / 4 / NUM_LAYERS) ** 0.5)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(*(nn.Linear(width, width, False) for _ in range(NUM_LAYERS)))
    if spread == "fsdp":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


class Contest:
    """One rank's part in a contest.

    Args:
        spread: how the ranks train.
        nbytes: how much they have.
        folder: where they save.
    """

    def __init__(self, spread: str, nbytes: int, folder: Path) -> None:
        self.folder, self.objects = folder, trained(spread, nbytes)
        self.ranks = Ranks.here()
        self.ranks.connect()
        model, optimizer = self.objects["model"], self.objects["optimizer"]
        moments = {
            f"{number}.{name}": tensor
            for number, some in optimizer.state_dict()["state"].items()
            for name, tensor in some.items()
        }
        self.flat = {**model.state_dict(), **moments}

    def contestants(self) -> dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]]:
        """Return by name how each saves, and loads."""
        found: dict[str, Any] = {
            "torchkeep": (self.save, self.load),
            "DCP": (
                lambda path: dcp.save(self.flat, checkpoint_id=path),
                lambda path: dcp.load(self.flat, checkpoint_id=path),
            ),
            "DCP, HF": (self.save_shards, self.load_shards),
        }
        if not isinstance(self.objects["model"], nn.parallel.DistributedDataParallel):
            return found
        return {"one process": (self.save_alone, self.load), **found}

    def save(self, path: Path) -> None:
        write_part(path, self.part(), facts=FACTS, ranks=self.ranks)

    def save_alone(self, path: Path) -> None:
        if self.ranks.is_first:
            write_part(path, self.part(), facts=FACTS, ranks=ALONE)

    def part(self) -> Part:
        part = part_of(*encode(capture(self.objects, copy=False)))
        here = {name: local_of(tensor) for name, tensor in part.tensors.items()}
        return replace(part, tensors=here)

    def load(self, path: Path) -> None:
        restore(read_part(path, self.ranks), self.objects)

    def save_shards(self, path: Path) -> None:
        dcp.save(
            self.flat, storage_writer=dcp.HuggingFaceStorageWriter(str(path), save_distributed=True)
        )

    def load_shards(self, path: Path) -> None:
        dcp.load(self.flat, storage_reader=dcp.HuggingFaceStorageReader(str(path)))

    def timed(self, do: Callable[[Path], object], path: Path) -> float:
        """Return how long something takes, from when all are there until the last is done."""
        distributed.barrier()
        begun = time.perf_counter()
        do(path)
        distributed.barrier()
        return time.perf_counter() - begun

    def round(self, number: int) -> dict[str, tuple[float, float]]:
        """Have each contestant save and load once; return the seconds."""
        contestants = self.contestants()
        names = sorted(contestants, key=lambda name: random.Random(f"{name} {number}").random())
        times = {}
        for name in names:
            save, load = contestants[name]
            path = self.folder / f"{number}-{name.replace(', ', '-').replace(' ', '-')}"
            times[name] = self.timed(save, path), self.timed(load, path)
            if self.ranks.is_first:
                shutil.rmtree(path)
                os.sync()
                time.sleep(2 * SETTLE_S)
        return times


def contest(options: argparse.Namespace) -> None:
    """Run as one rank; the first one prints what was measured."""
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo")
    contestants = Contest(options.spread, options.mb << 20, Path(options.folder))
    rounds = [contestants.round(number) for number in range(options.rounds + 1)]
    if distributed.get_rank() == 0:
        print(json.dumps(rounds[1:]))  # the first one warms up
    distributed.destroy_process_group()


def torchrun(script: str, num_ranks: int, *words: str) -> str:
    """Run a script as several ranks, with a thread each; return the last line printed, or none."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_ranks), script, *words]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return (done.stdout.splitlines() or [""])[-1]


def measured(
    options: argparse.Namespace, spread: str, ranks: int
) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a save and a load, by contestant."""
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        words = ["--spread", spread, "--folder", folder, "--mb", str(options.mb)]
        words += ["--rounds", str(options.rounds)]
        rounds = json.loads(torchrun(__file__, ranks, *words))
    return {
        name: tuple(statistics.median(some[name][n] for some in rounds) for n in (0, 1))
        for name in rounds[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--mb", type=int, default=400, help="size of the state in MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", help="where to write")
    parser.add_argument("--quick", action="store_true", help="a few MB, one round")
    parser.add_argument("--spread", choices=SPREADS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        contest(options)
        return
    if options.quick:
        options.mb, options.rounds, options.ranks = 12, 1, [2]
    print(f"{machine()}; {options.mb} MiB\n")
    rows = [row for n in options.ranks for spread in SPREADS for row in rows_of(options, spread, n)]
    heads = ["ranks", "layout", "", "save, s", "to one process", "to DCP", "load, s", "to DCP"]
    print(markdown(heads, rows))


def rows_of(options: argparse.Namespace, spread: str, ranks: int) -> list[list[str]]:
    """Return the rows of a table on some ranks."""
    times = measured(options, spread, ranks)
    alone = times.get("one process", (None, None))[0]
    rows = []
    for name, (save, load) in times.items():
        to_alone = f"{save / alone:.2f}" if alone else ""
        to_dcp = f"{save / times['DCP'][0]:.2f}", f"{load / times['DCP'][1]:.2f}"
        row = [
            str(ranks),
            spread,
            name,
            f"{save:.2f}",
            to_alone,
            to_dcp[0],
            f"{load:.2f}",
            to_dcp[1],
        ]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
