"""What checkpoints cost the training beside them, and when they are safe; Markdown tables.

    python benchmarks/checkpoint_stall.py                three models: half an hour on two cores
    python benchmarks/checkpoint_stall.py --quick        tiny ones: to see that it works
    python benchmarks/checkpoint_stall.py --threads 1    leave the other cores to who writes
    python benchmarks/checkpoint_stall.py --device cuda
    torchrun --nproc-per-node 2 benchmarks/checkpoint_stall.py --threads 1 --spread fsdp

A cycle is ten steps. Cycles with a checkpoint and without one take turns in one run, so that what
the machine does meanwhile meets both; a row's numbers are medians over the pairs of all rounds, and
the order of contestants is drawn anew for each round. The first checkpoint of a run is not counted:
buffers are made then. Everything is in milliseconds, but for the last columns:

    in the call    how much longer the training waited for its next batch than without the save
    after it       how much longer the rest took, up to where the next checkpoint could be made
    first step()   the part of it that the optimizer's next step took: it may wait for copies
    ratio          the time of the whole cycle to that of one without a checkpoint
    durable, s     from the call until the checkpoint was synced and had its name

In brackets: as a multiple of one plain copy of the state into memory that is there already. With
as many threads as cores, who writes takes its time from the training: that is in "after it".

Every contestant saves the model and the optimizer to the same disk, and syncs that; a cycle ends
when the write has ended. `DCP async_save` stages into memory that it keeps (`DefaultStager`,
reused); "overlapped" stages in a thread, and waits for that before the optimizer's step. Torchkeep
keeps one checkpoint: beside the training it reads each new one back, and deletes the one before.
The peers' are deleted between cycles, while nobody looks at the clock.

Under torchrun the ranks train one model, by DDP or FSDP2, and those contestants save it that can do
it together; with DDP also `torch.save` of the first rank. The numbers are the first rank's, of
cycles that all ranks begin and end together.

On a CUDA device a cycle begins and ends with nothing queued, so that "after it" has what the device
waited for; "in the call" and "first step()" are what the host waited for.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from save_load import SETTLE_S, machine, markdown
from stall.contestants import CONTESTANTS, NEED, TOGETHER, Unsaved
from stall.jobs import Job, is_first, jobs, num_ranks
from torch import distributed

from torchkeep.checkpointing.state.sharded import local_of

NUM_STEPS = 10
"""Steps between two checkpoints."""

now = time.perf_counter


# --- Measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cycle:
    """What ten steps took, in seconds."""

    call: float
    """Until the first batch was there."""
    first_step: float
    """The first step of the optimizer, and what had to be waited for before it."""
    total: float
    """Everything."""

    @property
    def rest(self) -> float:
        """What came after the first batch."""
        return self.total - self.call


@dataclass(frozen=True, slots=True)
class Pair:
    """A cycle with a checkpoint, and one without."""

    saved: Cycle
    plain: Cycle
    durable: float
    """Seconds until the checkpoint was durable."""


def run_cycle(run: Unsaved, *, save: bool, num_steps: int = NUM_STEPS) -> Cycle:
    """Train for some steps, and wait for what was begun to be written."""
    job = run.job
    job.synchronize()
    start = now()
    batch = run.batch(save=save)
    call = now() - start
    steps = []
    for number in range(num_steps):
        if number:
            batch = run.batch(save=False)
        job.model(batch.to(job.device)).square().mean().backward()
        begun = now()
        run.before_step()
        job.optimizer.step()
        steps.append(now() - begun)
        job.optimizer.zero_grad()
        run.after_step()
    if save:
        run.wait()
    job.synchronize()
    return Cycle(call, steps[0], now() - start)


def run_pairs(kind: type[Unsaved], job: Job, folder: Path, number: int) -> list[Pair]:
    """Return the pairs of one run."""
    run, plain = kind(job, folder), Unsaved(job, folder)
    try:
        run_cycle(run, save=True, num_steps=2)  # buffers are made
        pairs = []
        for _ in range(number):
            settle(folder)
            saved = run_cycle(run, save=True)
            settle(folder)
            pairs.append(Pair(saved, run_cycle(plain, save=False), run.durable_s))
    finally:
        run.close()
    return pairs


def settle(folder: Path) -> None:
    """Delete the peers' checkpoints, and give the disk a moment."""
    for path in folder.iterdir() if is_first() else ():
        if path.name.isdigit():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.sync()
    time.sleep(SETTLE_S)


def copy_seconds(job: Job, rounds: int = 5) -> float:
    """Return what one copy of the state takes, into memory that is there already."""
    tensors = [local_of(tensor.detach()) for tensor in job.tensors().values()]
    pinned = job.device.type == "cuda"
    copies = [torch.empty_like(item, device="cpu", pin_memory=pinned) for item in tensors]
    seconds = []
    for _ in range(rounds + 1):
        job.synchronize()
        start = now()
        for target, source in zip(copies, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        job.synchronize()
        seconds.append(now() - start)
    return statistics.median(seconds[1:])


def compare(job: Job, names: list[str], args: argparse.Namespace) -> str:
    """Return the table of a model."""
    run_cycle(Unsaved(job, Path()), save=False, num_steps=2)  # the optimizer has its state then
    pairs: dict[str, list[Pair]] = defaultdict(list)
    copies = []
    order = random.Random(0)
    for _ in range(args.rounds):
        copies.append(copy_seconds(job))
        for name in order.sample(names, len(names)):
            with common_folder(args.folder) as folder:
                pairs[name] += run_pairs(CONTESTANTS[name], job, folder, args.pairs)
            gc.collect()  # its buffers may be in a cycle
    return table(job, {name: pairs[name] for name in names}, statistics.median(copies))


@contextmanager
def common_folder(place: Path | None) -> Iterator[Path]:
    """Yield a folder that all ranks have, and that is gone afterwards."""
    if num_ranks() == 1:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            yield Path(folder)
        return
    told = [tempfile.mkdtemp(dir=place) if is_first() else ""]
    distributed.broadcast_object_list(told)
    yield Path(told[0])
    distributed.barrier()
    if is_first():
        shutil.rmtree(told[0])


# --- Printing ----------------------------------------------------------------------------------


def table(job: Job, pairs: dict[str, list[Pair]], copy: float) -> str:
    tensors = [local_of(tensor) for tensor in job.tensors().values()]
    mib = sum(tensor.nbytes for tensor in tensors) / 2**20
    each = " of a rank" if num_ranks() > 1 else ""
    head = [f"{job.name}: {len(tensors):,} tensors, {mib:,.0f} MiB{each}"]
    head += ["in the call", "after it", "first step()", "ratio", "durable, s"]
    body = [[name, *row(found, copy)] for name, found in pairs.items()]
    body.append(["one plain copy", f"{copy * 1000:.1f} (1.00)", "", "", "", ""])
    plain = statistics.median(pair.plain.total for found in pairs.values() for pair in found)
    return f"{markdown(head, body)}\n\n{NUM_STEPS} steps without a checkpoint: {plain:.2f} s"


def row(pairs: list[Pair], copy: float) -> list[str]:
    def milliseconds(part: Callable[[Cycle], float]) -> str:
        longer = statistics.median(part(pair.saved) - part(pair.plain) for pair in pairs)
        return f"{longer * 1000:.1f} ({longer / copy:.2f})"

    return [
        milliseconds(lambda cycle: cycle.call),
        milliseconds(lambda cycle: cycle.rest),
        milliseconds(lambda cycle: cycle.first_step),
        f"{statistics.median(pair.saved.total / pair.plain.total for pair in pairs):.3f}",
        f"{statistics.median(pair.durable for pair in pairs):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, one pair")
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--spread", choices=TOGETHER, default="ddp", help="how ranks train (ddp)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (2; with --quick 1)")
    parser.add_argument("-n", "--rounds", type=int, help="rounds (2; with --quick 1)")
    parser.add_argument("--pairs", type=int, help="pairs of cycles in a round (3)")
    parser.add_argument("--blocks", type=int, default=12, help="blocks of the transformer (12)")
    parser.add_argument("--models", nargs="*", help="words in the names of the models to take")
    parser.add_argument("--only", nargs="*", help="words in the names of the contestants to take")
    parser.add_argument("--folder", type=Path, help="where to write; a real disk, not tmpfs")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 2)
    args.pairs = args.pairs or (1 if args.quick else 3)
    args.threads = args.threads or (1 if args.quick else 2)
    # DCP warns that there are no processes to work with, which is as it should be.
    warnings.filterwarnings("ignore", module=r"torch\.distributed")
    torch.set_num_threads(args.threads)
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
        if not is_first():
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (until the end)
    torch.manual_seed(0)
    missing = {name for name, package in NEED.items() if importlib.util.find_spec(package) is None}
    able = CONTESTANTS if num_ranks() == 1 else TOGETHER[args.spread]
    names = [name for name in able if name not in missing and chosen(name, args.only)]
    device = torch.device(args.device)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else "on the CPU"
    ranks = f"{num_ranks()} ranks, {args.spread}" if num_ranks() > 1 else "one process"
    how = f"{args.threads} threads", ranks, f"{args.rounds} x {args.pairs} pairs"
    print(machine(on, *how))
    for name in sorted(missing & set(able)):
        print(f"Without {name}: the package {NEED[name]} is not installed.")
    for job in jobs(device, args.spread, num_blocks=args.blocks, quick=args.quick):
        if chosen(job.name, args.models):
            print(compare(job, names, args), flush=True)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")
    if num_ranks() > 1:
        distributed.destroy_process_group()


def chosen(name: str, words: list[str] | None) -> bool:
    return not words or any(word.lower() in name.lower() for word in words)


if __name__ == "__main__":
    main()
