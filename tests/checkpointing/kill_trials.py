"""Any rank is killed at any moment of a save, and what is left is a checkpoint of one moment.

Every tensor of a run says which step it is of, on every rank. `python tests/checkpointing/
kill_trials.py` does that some hundred times, and prints what was found.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from checkpointing.gang import join, run_gang
from torchkeep.checkpointing import Checkpointer, newest_whole
from torchkeep.checkpointing.layout import read_part
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.state.sharded import all_whole, local_of
from torchkeep.errors import CheckpointProblem, NoCheckpoint

TIMEOUT_S = 20.0
"""How long a rank waits for another one that is killed."""
MOST_S = 0.8
"""A rank is killed within this time of the first step: enough for some dozen saves."""


@dataclass(frozen=True)
class Trial:
    """What one rank of a trial is told."""

    folder: Path
    ranks: int
    spread: str
    """`ddp` or `fsdp`."""
    background: bool
    dies: int
    """Which rank is killed."""
    after_s: float
    """When, from its first step on."""
    rank: int = 0


class Stamped(nn.Module):
    """Parameters that all have the number of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(257, 301) for _ in range(4))
        self.register_buffer("count", torch.zeros(3))

    def stamp(self, step: int, rank: int) -> None:
        """Have all tensors say the step; the buffer also says whose it is."""
        with torch.no_grad():
            for parameter in self.parameters():
                local_of(parameter).fill_(step)
            self.count.fill_(10 * step + rank)


def main(trial: Trial, store: str) -> None:
    """Save after each step, from the step that the run is at, until somebody is killed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    join(trial.rank, trial.ranks, store, trial.folder / f"stderr-{trial.rank}")
    model = Stamped()
    if trial.spread == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (trial.ranks,)))
    own = {"torch": torch.zeros(5), "step": -1}
    ckpt = Checkpointer(
        trial.folder / "run",
        model=model,
        extra=own,
        keep_last=2,
        every_steps=1,
        durable=False,
        background=trial.background,
        timeout_s=TIMEOUT_S,
    )
    with ckpt:
        if ckpt.resumed_from is not None:
            check(model, own, ckpt.num_steps, trial.rank)
        for _ in ckpt.epochs(1):
            run(trial, model, own, ckpt)


def run(trial: Trial, model: Stamped, own: dict[str, Any], ckpt: Checkpointer) -> None:
    if trial.rank == trial.dies:
        threading.Timer(trial.after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for _ in ckpt.batches(range(1_000_000)):
        step = ckpt.num_steps + 1
        model.stamp(step, trial.rank)
        own["torch"].fill_(10 * step + trial.rank)
        own["step"] = step
        ckpt.step()


def check(model: Stamped, own: dict[str, Any], step: int, rank: int) -> None:
    """Raise unless all that a rank has is of one step."""
    found = {float(x) for item in model.parameters() for x in local_of(item).flatten().unique()}
    found |= {(float(x) - rank) / 10 for x in (*model.count.unique(), *own["torch"].unique())}
    if found != {float(step)} or own["step"] != step:
        raise AssertionError(f"rank {rank} has {found} and {own['step']} at step {step}")


def try_once(number: int) -> str:
    """Kill a rank, look at what it left, and go on from there; return what was found."""
    draw = random.Random(number)
    ranks = draw.choice((2, 3, 4))
    options = {
        "ranks": ranks,
        "spread": draw.choice(("ddp", "fsdp")),
        "background": draw.random() < 0.7,
        "dies": draw.randrange(ranks),
        "after_s": draw.uniform(0, MOST_S),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(2):  # the second goes on from what the first has left
            begun = time.monotonic()
            given = [(Trial(folder, rank=rank, **options),) for rank in range(ranks)]
            run_gang(main, given, TIMEOUT_S + 30, kill=False)
            waited = time.monotonic() - begun
            if waited > TIMEOUT_S + 20:
                return f"HANG: {options}: {waited:.0f} s"
            if problem := problem_of(folder, ranks):
                return f"MIXED: {options}: {problem}"
        told = " ".join(path.read_text() for path in folder.glob("stderr-*"))
        if "AssertionError" in told:
            return f"MIXED: {options}: {told[told.index('AssertionError') :][:300]}"
        try:
            newest = newest_whole(folder / "run")
        except NoCheckpoint:
            return "nothing was saved yet"
        return "whole, damaged ones beside it" if newest.skipped else "whole"


def problem_of(folder: Path, ranks: int) -> str:
    """Return what is wrong with the newest checkpoint; empty if nothing is, or there is none."""
    try:
        newest = newest_whole(folder / "run")
    except NoCheckpoint as error:
        return "" if "there is no checkpoint" in str(error) else str(error)
    except CheckpointProblem as error:
        return str(error)
    step = newest.checkpoint.step
    for rank in range(ranks):
        state = all_whole(read_part(newest.checkpoint.path, Ranks(rank, ranks)))
        model = state["objects"]["model"]["state"]["state_dict"]
        extra = state["objects"]["extra"]["state"]
        count = {(float(x) - rank) / 10 for x in (*model.pop("count"), *extra["torch"])}
        found = count | {float(x) for item in model.values() for x in item.unique()}
        if found != {float(step)} or extra["step"] != step:
            return f"rank {rank} has {found} at step {step}"
    return "; ".join(f"{item.path.name}: {item.problem}" for item in newest.skipped)


def trials() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the number that they are drawn by")
    given = parser.parse_args()
    found: Counter[str] = Counter()
    for number in range(given.first, given.first + given.trials):
        outcome = try_once(number)
        if outcome.startswith(("HANG", "MIXED")):
            print(f"{number}: {outcome}", flush=True)
        found[outcome.partition(":")[0]] += 1
    for outcome, count in found.most_common():
        print(f"{count:5} {outcome}")
    return bool(found["HANG"] or found["MIXED"])


if __name__ == "__main__":
    sys.exit(trials())
