"""The one class of this package that users hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from torchkeep.checkpointing.background.saver import Saver, part_to_save
from torchkeep.checkpointing.boundary import Boundary, Told
from torchkeep.checkpointing.doctor.environment import (
    command,
    environment,
    git_revision,
    versions,
)
from torchkeep.checkpointing.layout import check_facts, read_data_of_ranks, read_manifest, read_part
from torchkeep.checkpointing.notices import Notices
from torchkeep.checkpointing.preemption import SIGNALS, SignalWatch, check_signals
from torchkeep.checkpointing.progress import Progress, as_number
from torchkeep.checkpointing.ranks import TIMEOUT_S, Ranks
from torchkeep.checkpointing.resuming import inexact_resume, reasons_against
from torchkeep.checkpointing.run_state import RunState
from torchkeep.checkpointing.runs.checkpoints import (
    Checkpoint,
    look_at,
    newest_whole,
)
from torchkeep.checkpointing.runs.folder import RunFolder
from torchkeep.checkpointing.runs.retention import Best, check_best, check_counts
from torchkeep.checkpointing.schedule import Schedule
from torchkeep.checkpointing.state.encoding import State
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.errors import (
    CheckpointProblem,
    Preempted,
    TrainingDiverged,
    WrongArgument,
)
from torchkeep.garbage import collection_paused
from torchkeep.wording import counted


class Checkpointer:
    """Saves a training run while it goes on, and resumes it bit for bit.

        with Checkpointer("runs/digits", model=model, optimizer=optimizer, every_steps=200) as ckpt:
            for epoch in ckpt.epochs(10):
                for images, labels in ckpt.batches(loader):
                    ...
                    optimizer.step()
                    ckpt.step(loss=loss.item())
                ckpt.metrics(val_loss=validate(model))

    Run the same program again after a crash, and it goes on after the last checkpoint. Call
    `step` once per optimizer step, after it: with gradient accumulation that is once every few
    batches, and the batches since the last `step` are repeated after a resume.

    A checkpoint that is due after a step is made when the loop asks for the next batch, so what
    it does after `step`, such as `scheduler.step()`, is in it. It is written by another thread
    while the loop goes on: parameters and the optimizer's tensors are copied until the next step
    begins, everything else at once. Who changes parameters without the optimizer is found out: the
    checkpoint is given up, a warning names them, and the next one has them copied at once. A
    checkpoint that is due while one is written waits for that. `save` returns when it is written.

    What an epoch's body does before it walks over `batches` is done again when the epoch is
    resumed; the state is restored once more after that, so nothing counts twice.

    Breaking off is no end of the epoch: after a `break` out of the epoch loop, or an error that
    the program catches, the run goes on with the batches that are left. After a `break` out of
    the batches alone, the epoch ends with its body, as in any loop.

    Batches after an epoch's last `step` belong to no step of that epoch. If the loop does not
    drop their gradients they count in the next one, and so they do after a resume.

    Args:
        folder: where the run's checkpoints go; made if missing.
        format: "folder" for a folder of safetensors files per checkpoint, "pth" for one file that
            plain `torch.load` reads. The run may have had the other one before.
        model, optimizer, scheduler, scaler, ema: what is trained; see `torchkeep.capture` for
            what each may be.
        extra: further objects, and plain values, by name. A plain value is put back into this dict.
        seed: what the data's randomness is seeded from. By default torch's initial seed, the one
            that `torch.manual_seed` was given.
        metadata: plain values that every manifest records; tensors and arrays go into `extra`.
        every_steps: save after every so many steps; None for never.
        every_epochs: save after every so many epochs, after the epoch's body; None for never.
        keep_last: how many of the newest checkpoints to keep; None for all. Before an old one is
            deleted, the new one is read back and compared with its digests.
        keep_best: a metric and a direction, as in `("val_loss", "min")`: the best one is kept too.
            The metric has to be among those of the first epoch that has any.
        resume: "auto" goes on if there is something to go on with, True insists on it, False
            insists on an empty folder.
        allow_inexact: resume also where it can't be exact. The reasons are in `inexact`.
        durable: sync every checkpoint, so that a power loss can't undo it.
        background: write those that are due in another thread. Without it the loop waits.
        max_copy_nbytes: the memory that the copies may take, which is as much as the state; a
            larger state is written while the loop waits. By default half of what is free.
        signals: at one of these signals within the `with` block, save after the step that is
            running, and end the program with exit code 75 (`torchkeep.errors.Preempted`).
        stop_on_nan: raise `TrainingDiverged` if a value given to `step` is NaN or infinite; the
            checkpoints that are there stay, and nothing is saved at the end.
        whole_model: write a sharded model (FSDP2) also as `model.safetensors`, beside its shards.
            `torchkeep convert` does so afterwards.
        timeout_s: how long ranks that train together wait for each other when they save or resume.

    Attributes:
        resumed_from: the checkpoint that the run went on from, or None.
        skipped: the damaged checkpoints that were newer; each one's `problem` says what is wrong.
        inexact: why this resume may not be exact; empty if it is.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: object = None,
        optimizer: object = None,
        scheduler: object = None,
        scaler: object = None,
        ema: object = None,
        extra: dict[str, Any] | None = None,
        seed: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        every_steps: int | None = None,
        every_epochs: int | None = 1,
        keep_last: int | None = 3,
        keep_best: Best | None = None,
        resume: bool | Literal["auto"] = "auto",
        allow_inexact: bool = False,
        durable: bool = True,
        background: bool = True,
        max_copy_nbytes: int | None = None,
        signals: Collection[str] = SIGNALS,
        stop_on_nan: bool = False,
        format: Literal["folder", "pth"] = "folder",
        timeout_s: float = TIMEOUT_S,
        whole_model: bool = False,
    ) -> None:
        check_counts(every_steps=every_steps, every_epochs=every_epochs, keep_last=keep_last)
        check_best(keep_best)
        check_signals(signals)
        if not isinstance(resume, bool) and resume != "auto":
            raise WrongArgument(f"resume is {resume!r}", advice='Give "auto", True or False.')
        self.folder = Path(folder)
        objects = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": scaler,
            "ema": ema,
            "extra": extra,
        }
        self._state = RunState(objects, seed)
        self.metadata = dict(metadata or {})
        check_facts(self.metadata, "metadata")
        self.keep_best = keep_best
        self.resume = resume
        self.allow_inexact = allow_inexact
        self.background = background
        self.signals = tuple(signals)
        self.stop_on_nan = stop_on_nan
        self.resumed_from: Checkpoint | None = None
        self.skipped: tuple[Checkpoint, ...] = ()
        self.inexact: tuple[str, ...] = ()
        self._ranks = Ranks.here(timeout_s)
        self._run = RunFolder(
            folder,
            keep_last=keep_last,
            keep_best=keep_best,
            durable=durable,
            form=format,
            ranks=self._ranks,
            whole_model=whole_model,
        )
        self._saver = Saver(self._run, objects, max_copy_nbytes)
        self._notices = Notices()
        self._schedule = Schedule(every_steps, every_epochs)
        self._boundary = Boundary(self._ranks)
        self._asked_by = ""
        self._num_saves = 0
        self._git: str | None = None
        self._signals: SignalWatch | None = None

    # --- The run's life ------------------------------------------------------------------------

    def __enter__(self) -> Checkpointer:
        self._open()
        try:
            self._watch_signals()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if (failed := self._save_at_last()) is not None:
                    raise failed
                self._tell_of_no_best()
            elif error is not None:
                self._wait_beside(error)
                self._leave_if_workers_left(error)
        finally:
            self.close()

    def _tell_of_no_best(self) -> None:
        best, history = self.keep_best, self._progress.history
        if best is not None and history and not self._progress.was_measured(best[0]):
            self._notices.no_best(best[0])

    def _save_at_last(self) -> Exception | None:
        """Save what is unsaved, also what an earlier save could not; return why that failed."""
        failed: Exception | None = None
        try:
            self.wait()
        except Exception as error:
            failed = error
        if self._ranks.any(not self._schedule.is_saved):
            self.save()
        return failed

    def _wait_beside(self, error: BaseException) -> None:
        """Wait for what is being written; that it fails too is told with the error."""
        try:
            self.wait()
        except Exception as other:
            error.add_note(f"The checkpoint that was being written failed as well: {other}")

    def close(self) -> None:
        """Give the run folder free, after what is being written.

        Leaving the `with` block does it, and saves what is unsaved.

        Raises:
            SaveRefused: what was being written could not be.
            CheckpointProblem: it reads back other than it was written.
        """
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        try:
            self.wait()
        finally:
            self._saver.close()
            self._run.release()

    def _open(self) -> None:
        """Take the run folder, and resume if there is something to go on with."""
        if self._run.is_taken:
            return
        try:
            checkpoints = self._take()
            if self.resume is False and checkpoints:
                raise CheckpointProblem(
                    f"{self.folder}: it holds {counted(len(checkpoints), 'checkpoint')} already",
                    advice='Choose another folder, or pass resume="auto" to go on with them.',
                )
            if checkpoints or self.resume is True:
                self._restore(None)
        except BaseException:
            self.close()
            raise

    def _take(self) -> list[Checkpoint]:
        """Become the one owner of the run folder, and return the checkpoints in it."""
        checkpoints = self._run.take()
        self._git = git_revision()
        self._saver.watch()
        self._state.watch()
        return checkpoints

    def _watch_signals(self) -> None:
        """Mind signals, and go on when all ranks do: one sent to all ends those that do not yet.

        Only within a `with` block is it sure that the handlers are put back.
        """
        self._signals = SignalWatch(self.signals)
        try:
            self._ranks.meet()
        except CheckpointProblem as problem:
            if self._signals.received == "SIGINT":  # and another rank has ended by it
                raise KeyboardInterrupt from problem
            raise

    # --- The loop ------------------------------------------------------------------------------

    def epochs(self, num_epochs: int) -> Iterator[int]:
        """Yield the numbers of the epochs that are left of `num_epochs`, from 0.

        What the loop's body did, its metrics too, is saved when the next number is asked for. An
        epoch that the loop broke off is gone on with. Outside of a `with` block nobody watches for
        signals, nothing is saved at the end, and the run is held until `close`.

        Raises:
            CheckpointProblem: a resumed epoch began fewer passes over `batches` than it had when
                it was saved, or the metric of `keep_best` is not among the epoch's metrics.
        """
        self._open()
        while self._progress.epoch < num_epochs:
            self._state.begin_epoch()
            yield self._progress.epoch
            self._end_epoch()

    def _end_epoch(self) -> None:
        if self._progress.epoch and not self._progress.step and self._state.passes.begun:
            self._notices.no_steps()
        self._join_measured()
        was_rated = bool(self._progress.metrics)
        self._state.end_epoch()
        self._schedule.count_epoch(self._progress.epoch)
        self._save_if_due()
        if was_rated and self.keep_best is not None:
            self._progress.check_was_measured(self.keep_best[0])
        self._leave_if_asked()

    def _join_measured(self) -> None:
        """Have what all ranks have measured, so that all see the same history, and stop alike."""
        if self._ranks.is_alone:
            return
        # What is told at the first boundary is known at the second: that all are here.
        self._meet()
        self._meet()
        order = "" if self._progress.epoch else self._state.order_of_replica()
        found = self._ranks.every(lambda: (order, self._progress.measured()))
        if self._ranks.is_first and order and all(other == order for other, _ in found):
            self._notices.same_samples(self._ranks.size)
        self._progress.join([measured for _, measured in found])

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of `loader`, in a resumed epoch those that are left.

        A map-style `DataLoader` gives the batches that it would give by itself in the main
        process, except that each sample is fetched under its own seed: see
        `torchkeep.checkpointing.sample_order`.

        Raises:
            CheckpointProblem: the data set has changed in the middle of an epoch.
        """
        self._open()
        self._state.look_at(loader)
        if not self._state.is_resuming:
            self._save_if_due()
        yield from self._state.batches(loader, self._between_batches)

    def _between_batches(self) -> None:
        self._save_if_due()
        self._leave_if_asked()

    def step(self, **values: float | torch.Tensor) -> None:
        """Count a finished optimizer step.

        A checkpoint that is now due is written when the next batch is asked for, or the epoch
        or the `with` block ends without an error: then it has what the loop did after this call.
        In an epoch without `batches` it is written at once.

        Args:
            values: what to average over the epoch, such as `loss=loss.item()`.

        Raises:
            SaveRefused: a checkpoint that was being written could not be.
            CheckpointProblem: it reads back other than it was written.
            TrainingDiverged: a value is not finite, and `stop_on_nan` is set.
        """
        if self.stop_on_nan:
            self._refuse_not_finite(values)
        self._state.finish_step(values)
        self._schedule.count_step(self._progress.step)
        # Last: what failed before is no reason not to count the step that was made.
        if self._ranks.is_alone:
            self._heed(self._saver.check)
        if not self._state.passes.begun:
            self._between_batches()

    def _refuse_not_finite(self, values: Mapping[str, float | torch.Tensor]) -> None:
        for name, value in values.items():
            if not math.isfinite(as_number(value)):
                raise TrainingDiverged(
                    f"{name} is {as_number(value)} after step {self._progress.step + 1}",
                    advice="Go on from a checkpoint with a smaller learning rate, set within the "
                    "`with` block (the optimizer's settings come back with it), or with "
                    f"other data. The newest is {self._run.previous or 'not there yet'}.",
                )

    def metrics(self, **values: float | torch.Tensor) -> None:
        """Record metrics of the running epoch, such as `val_loss`; they go into its checkpoint.

        Of several ranks the history has the mean over those that record one.
        """
        self._progress.metrics.update({name: as_number(item) for name, item in values.items()})
        self._schedule.note_change()

    @property
    def _progress(self) -> Progress:
        return self._state.progress

    @property
    def seed(self) -> int:
        """What the data's randomness is seeded from; a resumed run has its first one."""
        return self._state.seed

    @property
    def last_saved(self) -> Path | None:
        """The checkpoint that was written last, or None."""
        return self._run.last_saved

    @property
    def num_steps(self) -> int:
        """Finished optimizer steps of the run."""
        return self._progress.step

    @property
    def epoch(self) -> int:
        """Finished epochs, which is also the number of the running one."""
        return self._progress.epoch

    @property
    def num_batches(self) -> int:
        """Finished batches of the running epoch."""
        return self._state.passes.num_batches

    @property
    def means(self) -> dict[str, float]:
        """The means, so far in this epoch, of what `step` got; a resume does not change them.

        Of several ranks each has its own; when the epoch is over, the history has those of all.
        """
        return self._progress.means()

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per finished epoch: `epoch`, `step`, means and metrics."""
        return [dict(row) for row in self._progress.history]

    # --- Saving --------------------------------------------------------------------------------

    def save(self, *, wait: bool = True) -> Path:
        """Save at once, and return the checkpoint's folder.

        Between a batch and its `step` the checkpoint is not exact, and says so. Between a `step`
        and what belongs to it, such as `scheduler.step()`, it can't know.

        Args:
            wait: return when it is written. If not, it is copied now and written meanwhile; what
                fails then is raised by the next call, and the folder may never be there.

        Raises:
            SaveRefused: a value can't be kept, or the folder can't be written.
            CheckpointProblem: the checkpoint reads back other than it was written.
        """
        self._open()
        self.wait()
        with collection_paused(), torch.no_grad():
            state, part = self._ranks.each(self._captured)
            path, serial = self._run.next_name(self._progress.step)
            facts = self._facts(state, serial)
            self._saver.save(path, part, facts, beside=self.background and not wait)
        self._num_saves += 1
        self._schedule.note_save()
        self._notices.inexact(path, state["inexact"])
        return path

    def _captured(self) -> tuple[State, Part]:
        state = self._state.capture()
        return state, part_to_save(state)

    def wait(self) -> None:
        """Return when what is being written is written.

        Raises:
            SaveRefused: it could not be written.
            CheckpointProblem: it reads back other than it was written.
        """
        self._heed(self._saver.wait)

    def _heed(self, ask: Callable[[], Sequence[str]]) -> None:
        """Ask the saver: raise what it raises, and have what it gave up done again."""
        try:
            names = ask()
        except BaseException:
            self._schedule.note_change()
            raise
        if names:
            self._schedule.ask_again()
            self._notices.given_up(names)

    def _save_if_due(self) -> None:
        self._meet()
        if self._schedule.is_due:
            self.save(wait=False)

    def _meet(self) -> None:
        """Learn at a step's end what has come of a save, and whether some rank is to make room."""
        received = self._signals.received if self._signals is not None else ""
        now = Told(self._progress.step, received, self._num_saves, self._saver.is_busy)
        told = self._boundary.cross(now)
        self._asked_by = self._asked_by or told.signal
        # What all have done they hear of at the same boundary, and so take the same way on.
        if told.num_saves == self._num_saves and not told.is_saving:
            self._heed(self._saver.check)

    def _leave_if_asked(self) -> None:
        """Save and end the program if a signal asked for it, unless in the midst of a step."""
        if not self._asked_by or not self._state.passes.is_between_steps:
            return
        failed = self._save_at_last()
        if self._ranks.is_first:
            self._notices.preempted(self._asked_by, self._run.previous)
        raise Preempted(self._asked_by) from failed

    def _leave_if_workers_left(self, error: BaseException) -> None:
        """Save and end the program if a loader's workers ended by a signal that went to all."""
        # PyTorch's error has no kind of its own. Other ranks are in the midst of a step.
        if "DataLoader worker" in str(error) and self._ranks.is_alone:
            self._meet()
            self._leave_if_asked()

    def _facts(self, state: State, serial: int) -> dict[str, Any]:
        return {
            "serial": serial,
            **self._state.facts(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "environment": environment(),
            "git": self._git,
            "command": command(self.folder),
            "metadata": self.metadata,
            "keep_best": None if self.keep_best is None else list(self.keep_best),
            "inexact": state["inexact"],
        }

    # --- Resuming ------------------------------------------------------------------------------

    def restore(self, checkpoint: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Put everything back to a checkpoint: the newest whole one, or the folder given.

        Raises:
            NoCheckpoint: there is no whole one.
            DamagedFile: the one that was given is damaged.
            CheckpointProblem: it is of another model or optimizer.
            InexactResume: the run would not go on bit for bit, and `allow_inexact` is not set.
        """
        was_taken = self._run.is_taken
        try:
            if not was_taken:
                self._take()
            self.wait()
            return self._restore(checkpoint)
        except BaseException:
            if not was_taken:  # else a `with` that follows would begin from nothing
                self.close()
            raise

    def _restore(self, checkpoint: str | os.PathLike[str] | None) -> Checkpoint:
        ranks = self._ranks
        if checkpoint is None:
            newest = newest_whole(self.folder, ranks)
            found, self.skipped = newest.checkpoint, newest.skipped
        else:
            place = Path(checkpoint)
            found, self.skipped = ranks.first(lambda: look_at(place)), ()
        manifest = ranks.each(lambda: read_manifest(found.path))
        against = ranks.every(lambda: reasons_against(manifest, self._state.objects))
        reasons = list(dict.fromkeys(reason for some in against for reason in some))
        self.inexact = tuple(reasons)
        if reasons and not self.allow_inexact:
            raise inexact_resume(found, reasons, self._state.objects)
        ranks.each(lambda: self._state.resume(self._read(found.path, manifest), found.path))
        self._state.settle()
        self._schedule.note_save()
        self.resumed_from = found
        self._run.resume_from(found.path, self.skipped)
        if ranks.is_first:
            self._notices.skipped(found, self.skipped)
            self._notices.goes_on_inexactly(found, reasons)
        return found

    def _read(self, path: Path, manifest: Mapping[str, Any]) -> State:
        """Return what this rank goes on with."""
        state = read_part(path, self._ranks)
        if manifest.get("ranks", 1) == self._ranks.size:
            return state
        return self._state.regroup(state, read_data_of_ranks(path), self._ranks)
