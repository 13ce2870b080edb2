"""Who saves, each in a run of its own: torchkeep, PyTorch's own, and other packages."""

# ruff: noqa: D102  what a contestant's methods do is said once, in `Unsaved`

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from save_load import sync
from torch import distributed
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from stall.jobs import Job, is_first, num_ranks
from torchkeep import Checkpointer

now = time.perf_counter


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
