"""Runs of several ranks that are killed and resumed, and those that go on with others.

`make test-distributed` kills every kind of run at every place, tries every pair of layouts, and
kills ranks some hundred times in a save. Here it is a few of each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from checkpointing import kill_trials
from checkpointing.exact_matrix import (
    CELLS,
    differences,
    killed_and_resumed,
    launch,
    on_ranks,
    places,
    reference_of,
)
from checkpointing.gang import join, run_gang
from checkpointing.gang import on_ranks as each_rank
from checkpointing.layout_matrix import try_all
from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.errors import SaveRefused


@pytest.mark.parametrize(
    ("ranks", "spread", "cell"),
    [
        (2, "ddp", "accumulation of 3, across epochs"),
        (3, "ddp", "EMA"),
        (2, "fsdp", "bf16 parameters, fp32 moments"),
        (3, "fsdp", "2 workers"),
    ],
)
def test_ranks_that_are_killed_again_and_again_end_as_if_they_never_were(
    tmp_path, ranks, spread, cell
):
    options = on_ranks(ranks, spread, CELLS[cell])
    expected = tmp_path / "expected"
    assert launch(expected, **reference_of(options)) == 0
    found = tmp_path / "found"
    killed_and_resumed(found, places(expected)[5::25], **options)
    assert differences(found, expected) == []


def test_any_layout_is_put_back_by_any_other(tmp_path):
    layouts = ("plain", 1), ("ddp", 2), ("fsdp", 3)
    found = try_all(tmp_path, layouts)
    assert len(found) == 9
    assert {pair: wrong for pair, wrong in found.items() if wrong} == {}
    told = json.loads((tmp_path / "plain-1.json").read_text())
    assert len(told) == 44


@pytest.mark.parametrize("number", range(4))
def test_a_rank_that_dies_in_a_save_leaves_a_whole_checkpoint(number):
    assert kill_trials.try_once(1000 + number) in ("whole", "nothing was saved yet")


# --- Going on with others ----------------------------------------------------------------------

NUM_SAMPLES = 37


def epoch_of(rank: int, run: Path, size: int, stop: int | None) -> list[int]:
    """Train for an epoch, or leave it after some steps; return the samples that were seen."""
    data = TensorDataset(torch.arange(NUM_SAMPLES))
    sampler = DistributedSampler(data, size, rank, seed=5) if size > 1 else None
    loader = DataLoader(data, 3, sampler=sampler, shuffle=sampler is None)
    model = nn.Linear(1, 1)
    seen = []
    with Checkpointer(run, model=model, allow_inexact=True, timeout_s=30) as ckpt:
        for _ in ckpt.epochs(1):
            for (indices,) in ckpt.batches(loader):
                seen += indices.tolist()
                ckpt.step()
                if ckpt.num_steps == stop:
                    ckpt.save()
                    os.killpg(0, signal.SIGKILL) if stop is None else None
                    break
            if stop is not None:
                break  # what is left of the epoch is for others
    return seen


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (2, 1)])
def test_an_epoch_that_others_go_on_with_has_each_sample_once(tmp_path, before, after):
    run = tmp_path / "run"
    first = each_rank(before, epoch_of, run, before, 2)
    rest = each_rank(after, epoch_of, run, after, None)
    seen = Counter(index for some in (*first, *rest) for index in some)
    assert set(seen) == set(range(NUM_SAMPLES))
    assert set(seen.values()) == {1}
    assert max(map(len, rest)) - min(map(len, rest)) <= 1


# --- Asked to make room ------------------------------------------------------------------------


def asked(folder: Path, rank: int, size: int, num_workers: int, store: str) -> None:
    """Train until a signal comes, which only one rank gets, with all of its process group."""
    join(rank, size, store, folder / f"stderr-{rank}")
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Ours are forked as torchrun's are not, and would have their workers forked by another process.
    context = "fork" if num_workers else None
    loader = DataLoader(
        TensorDataset(torch.ones(2000, 2)),
        2,
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    with Checkpointer(folder / "run", model=model, optimizer=optimizer, timeout_s=30) as ckpt:
        for _ in ckpt.epochs(1):
            for (inputs,) in ckpt.batches(loader):
                model(inputs).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.step()
                if ckpt.num_steps == 7 and rank == 1:
                    os.killpg(0, signal.SIGTERM)
                (folder / f"steps-{rank}").write_text(f"{ckpt.num_steps}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_one_rank_is_asked_all_do_at_the_same_step(tmp_path, num_workers):
    given = [(tmp_path, rank, 3, num_workers) for rank in range(3)]
    assert run_gang(asked, given, 60, kill=False) == [75, 75, 75]
    steps = {int((tmp_path / f"steps-{rank}").read_text()) for rank in range(3)}
    (step,) = steps
    assert step in (7, 8)  # it is told at the end of one step, and known at that of the next
    (saved,) = list_checkpoints(tmp_path / "run")
    assert (saved.step, saved.inexact) == (step, ())
    told = [(tmp_path / f"stderr-{rank}").read_text() for rank in range(3)]
    assert "SIGTERM: the run is saved as" in told[0]
    assert "SIGTERM" not in told[1]  # once is enough


def measuring(rank: int, run: Path) -> tuple[list, str]:
    """Train with a loss and a metric of each rank's own, and one that only the last rank has."""
    given = {"model": nn.Linear(1, 1), "keep_best": ("val_loss", "min"), "keep_last": 1}
    with Checkpointer(run, **given, timeout_s=30) as ckpt:
        for epoch in ckpt.epochs(3):
            for _ in ckpt.batches(DataLoader(TensorDataset(torch.ones(2)))):
                ckpt.step(loss=0.1 + rank, same=0.1)
            # By the first rank alone the last epoch would be the best one.
            ckpt.metrics(val_loss=[[4.0, 2.0, 1.0], [1.0, 2.0, 9.0], [4.0, 2.0, 8.0]][rank][epoch])
            if rank == 2:
                ckpt.metrics(accuracy=epoch / 10)
        return ckpt.history, min(item.path.name for item in list_checkpoints(run))


def test_the_history_is_that_of_all_ranks(tmp_path):
    told = each_rank(3, measuring, tmp_path / "run")
    assert told[0] == told[1] == told[2]
    history, best = told[0]
    assert [row["val_loss"] for row in history] == [3.0, 2.0, 6.0]
    assert [row["accuracy"] for row in history] == [0.0, 0.1, 0.2]
    assert [row["loss"] for row in history] == pytest.approx([1.1] * 3)
    assert [row["same"] for row in history] == [0.1] * 3  # to the last bit
    assert best == "step-00000004"


def walking(rank: int, run: Path, is_shared_out: bool, spread: str) -> list[str]:
    """Train on what each rank has of the samples, or on all; return what is warned of."""
    data = TensorDataset(torch.arange(8.0).reshape(8, 1))
    sampler = DistributedSampler(data, seed=5) if is_shared_out else None
    model = nn.Linear(1, 1)
    model = nn.parallel.DistributedDataParallel(model) if spread == "ddp" else model
    with (
        warnings.catch_warnings(record=True) as caught,
        Checkpointer(run, model=model, timeout_s=30) as ckpt,
    ):
        warnings.simplefilter("always")
        for _ in ckpt.epochs(2):
            for _ in ckpt.batches(DataLoader(data, 2, sampler=sampler)):
                ckpt.step()
    return [f"{item.message}" for item in caught]


@pytest.mark.parametrize(
    ("is_shared_out", "spread", "number"), [(False, "ddp", 1), (True, "ddp", 0), (False, "", 0)]
)
def test_ranks_that_do_the_work_of_one_are_told(tmp_path, is_shared_out, spread, number):
    told = each_rank(2, walking, tmp_path / "run", is_shared_out, spread)
    assert [len(texts) for texts in told] == [number, 0]
    assert not number or "all 2 ranks trained on the same samples" in told[0][0]


def uneven(rank: int, run: Path) -> str:
    """Train with more batches on one rank than on the other."""
    model = nn.Linear(1, 1)
    begun = time.monotonic()
    try:
        with Checkpointer(run, model=model, timeout_s=5) as ckpt:
            for _ in ckpt.epochs(1):
                for _ in ckpt.batches(DataLoader(TensorDataset(torch.ones(4 + rank)))):
                    ckpt.step()
    except Exception as error:  # of any kind
        return f"{error}" if time.monotonic() - begun < 25 else "it hung"
    return "nothing"


def test_ranks_with_more_batches_than_others_are_told(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = each_rank(2, uneven, tmp_path / "run")
    assert any("All ranks have to make the same steps" in text for text in told), told
    assert "nothing" not in told
    assert "it hung" not in told


def changing(rank: int, run: Path) -> list[str]:
    """Change a parameter of one rank while its copies are made; return what each rank is told."""
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"every_steps": 1, "timeout_s": 30}
    with (
        warnings.catch_warnings(record=True) as told,
        Checkpointer(run, model=model, optimizer=optimizer, **options) as ckpt,
    ):
        warnings.simplefilter("always")
        for _ in ckpt.epochs(1):
            for _ in ckpt.batches(range(8)):
                if rank == 0 and ckpt.num_steps == 2:
                    with torch.no_grad():
                        model[0].weight.add_(1)
                model[1].weight.grad = torch.ones(300, 300)
                optimizer.step()
                ckpt.step()
    return [str(item.message) for item in told]


def test_what_one_rank_gives_up_all_do_again(tmp_path):
    told = each_rank(3, changing, tmp_path / "run")
    assert ["changed between two steps" in " ".join(some) for some in told] == [True] * 3
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert (newest.step, newest.problem) == (8, "")


def on_a_full_disk(rank: int, run: Path) -> list[str]:
    """Go on after a save that failed; the second rank has no memory for copies."""
    torch.manual_seed(0)
    model = nn.Linear(50, 50)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []
    options = {"every_steps": 2, "every_epochs": None, "timeout_s": 5}
    options["max_copy_nbytes"] = 0 if rank == 1 else None
    with Checkpointer(run, model=model, **options) as ckpt:
        for _ in ckpt.epochs(1):
            for number in range(8):
                full = 4_000 if number == 3 else kept[0]
                resource.setrlimit(resource.RLIMIT_FSIZE, (full, kept[1]))
                try:
                    ckpt.step()
                except SaveRefused:
                    told.append(f"not saved at {number + 1}")
    return told


def test_all_are_told_of_a_failed_save_at_the_same_step(tmp_path):
    told = each_rank(2, on_a_full_disk, tmp_path / "run", timeout_s=60)
    assert told == [["not saved at 4"]] * 2
    assert list_checkpoints(tmp_path / "run")[-1].step == 8
