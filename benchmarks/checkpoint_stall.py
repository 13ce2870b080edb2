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

# ruff: noqa: D102  what a contestant's methods do is said once, in `Unsaved`

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
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from save_load import SETTLE_S, machine, markdown, sync
from torch import distributed, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from torchkeep import Checkpointer
from torchkeep.checkpointing.state.sharded import local_of

NUM_STEPS = 10
"""Steps between two checkpoints."""

now = time.perf_counter


def num_ranks() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that acts for all."""
    return num_ranks() == 1 or distributed.get_rank() == 0


# --- What is trained ---------------------------------------------------------------------------


class Tower(nn.Module):
    """A tower of square layers, each added to what goes through it."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(height))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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


def jobs(device: torch.device, spread: str, *, quick: bool) -> Iterator[Job]:
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
        Transformer(12, 768, 8000),
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


# --- Who saves ---------------------------------------------------------------------------------


class Unsaved:
    """A run of which nothing is kept, and what all runs have."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.batches = iter(job.loader)
        self.durable_s = 0.0

    def batch(self, *, save: bool) -> torch.Tensor:  # noqa: ARG002
        """Return the next batch, after a save if there is to be one."""
        return next(self.batches)

    def before_step(self) -> None:
        """Make sure that the optimizer may change the tensors."""

    def after_step(self) -> None:
        """Count a step."""

    def wait(self) -> None:
        """Return when what was begun is durable; `durable_s` says then how long it took."""

    def close(self) -> None:
        """End it."""


class Torchkeep(Unsaved):
    """Ours."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        self.ckpt = Checkpointer(
            folder, model=job.model, optimizer=job.optimizer, every_epochs=None, keep_last=1
        )
        self.batches = iter(self.ckpt.batches(job.loader))

    def batch(self, *, save: bool) -> torch.Tensor:
        if save:
            self.begun_at = time.time()
            self.path = self.ckpt.save(wait=False)
        return next(self.batches)

    def after_step(self) -> None:
        self.ckpt.step()

    def wait(self) -> None:
        self.ckpt.wait()
        # It got its name last, and nothing changes it after that.
        self.durable_s = self.path.stat().st_ctime - self.begun_at

    def close(self) -> None:
        self.ckpt.close()


class Peer(Unsaved):
    """Somebody else, who writes to a new place each time. `save` is what they differ in."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        self.number = 0
        self.writing: Future[Any] | None = None
        self.is_durable = threading.Event()

    def save(self, path: Path) -> Future[Any] | None:
        """Save to a path, and return what is done when it is durable; None if it is."""
        raise NotImplementedError

    def batch(self, *, save: bool) -> torch.Tensor:
        if save:
            self.number += 1
            self.is_durable.clear()
            self.begun = now()
            self.writing = self.save(self.folder / str(self.number))
            if self.writing is None:
                self._end()
            else:
                self.writing.add_done_callback(self._end)
        return next(self.batches)

    def _end(self, _: object = None) -> None:
        self.durable_s = now() - self.begun
        self.is_durable.set()

    def wait(self) -> None:
        if self.writing is not None:
            self.writing.result()
            self.is_durable.wait()  # a future tells who waits before it calls back

    def close(self) -> None:
        self.wait()


class TorchSave(Peer):
    """torch.save, written aside and renamed; the first rank's, if there are several."""

    def save(self, path: Path) -> None:
        if not is_first():
            return
        with published(path) as part:
            torch.save(self.job.state(), part)


class Safetensors(Peer):
    """safetensors, which has no place for what is no tensor."""

    def save(self, path: Path) -> None:
        with published(path) as part:
            safetensors.torch.save_file(self.job.tensors(), part)


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield where to write a file that is synced then, and gets its name for good."""
    part = path.with_name("part")
    yield part
    sync(part)
    part.replace(path)
    sync(path.parent)


class Dcp(Peer):
    """What is alike in all ways to have torch.distributed.checkpoint save."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        self.options: dict[str, Any] = {"no_dist": True}
        if num_ranks() > 1:  # of its own, for a thread must not share that of the training
            self.options = {"process_group": distributed.new_group(backend="gloo")}

    def close(self) -> None:
        super().close()
        if group := self.options.get("process_group"):
            distributed.destroy_process_group(group)


class DcpSave(Dcp):
    """It does so while the training waits."""

    def save(self, path: Path) -> None:
        dcp.save(self.job.state(), checkpoint_id=path, **self.options)


class DcpAsync(Dcp):
    """The same in a thread, from a copy that is made first."""

    is_overlapped = False

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        has_gpu = job.device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=has_gpu,
            use_shared_memory=False,
            use_async_staging=self.is_overlapped,
            use_non_blocking_copy=has_gpu,
        )
        self.stager = DefaultStager(options)
        self.staging: Future[Any] | None = None

    def save(self, path: Path) -> Future[Any]:
        answer: Any = dcp.async_save(
            self.job.state(), checkpoint_id=path, async_stager=self.stager, **self.options
        )
        if isinstance(answer, Future):
            return answer
        self.staging = answer.staging_completion
        written: Future[Any] = answer.upload_completion
        return written

    def before_step(self) -> None:
        if self.staging is not None:
            self.staging.result()
            self.staging = None

    def close(self) -> None:
        super().close()
        self.stager.close()


class DcpOverlapped(DcpAsync):
    """The same, and the copy is made in a thread, too."""

    is_overlapped = True


class TorchCheckpointing(Peer):
    """The package torch_checkpointing: a copy in shared memory, which another process writes."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        self.manager = CheckpointManager.Config(
            # Its O_DIRECT writes are not aligned, and ext4 refuses them.
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
            pre_finalize_callback=sync_files,
        ).build()

    def save(self, path: Path) -> Future[Any]:
        written: Future[Any] = self.manager.save(str(path), self.job.state())
        return written

    def before_step(self) -> None:
        with self.manager.lock():  # it waits for the copy
            pass

    def close(self) -> None:
        super().close()
        self.manager.close()


def sync_files(args: Any) -> None:
    """Do what torch_checkpointing does not: sync what it wrote, before it is renamed."""
    for path in Path(args.path).rglob("*"):
        sync(path)


class Lightning(Peer):
    """Lightning's AsyncCheckpointIO: a clone, which a thread gives to torch.save."""

    def __init__(self, job: Job, folder: Path) -> None:
        super().__init__(job, folder)
        from lightning.fabric.plugins.io import TorchCheckpointIO
        from lightning.pytorch.plugins.io import AsyncCheckpointIO

        run = self

        class Synced(TorchCheckpointIO):
            """What it lacks, and a word when it is done."""

            def save_checkpoint(self, checkpoint: Any, path: Any, *args: Any) -> None:
                try:
                    with published(path) as part:
                        super().save_checkpoint(checkpoint, part, *args)
                    run.done.set_result(None)
                except BaseException as error:  # else nobody would end waiting
                    run.done.set_exception(error)
                    raise

        self.io = AsyncCheckpointIO(Synced())

    def save(self, path: Path) -> Future[Any]:
        self.done: Future[Any] = Future()
        self.io.save_checkpoint(self.job.state(), path)
        return self.done

    def close(self) -> None:
        super().close()
        self.io.teardown()


CONTESTANTS: dict[str, type[Unsaved]] = {
    "torch.save": TorchSave,
    "safetensors.save_file": Safetensors,
    "DCP save": DcpSave,
    "DCP async_save": DcpAsync,
    "DCP async_save, overlapped": DcpOverlapped,
    "torch_checkpointing": TorchCheckpointing,
    "Lightning AsyncCheckpointIO": Lightning,
    "torchkeep": Torchkeep,
}

TOGETHER = {
    "ddp": ["torch.save", "DCP save", "DCP async_save", "DCP async_save, overlapped", "torchkeep"],
    "fsdp": ["DCP save", "DCP async_save", "DCP async_save, overlapped", "torchkeep"],
}
"""Who can save what several ranks train."""

NEED = {"torch_checkpointing": "torch_checkpointing", "Lightning AsyncCheckpointIO": "lightning"}
"""The packages that some contestants are, or come with."""


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
    for job in jobs(device, args.spread, quick=args.quick):
        if chosen(job.name, args.models):
            print(compare(job, names, args), flush=True)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")
    if num_ranks() > 1:
        distributed.destroy_process_group()


def chosen(name: str, words: list[str] | None) -> bool:
    return not words or any(word.lower() in name.lower() for word in words)


if __name__ == "__main__":
    main()
