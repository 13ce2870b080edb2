"""The whole flow: from weights and a folder of images to a model that works, and its run.

It is made of the functions beside it and of `Checkpointer`, in the order in which anybody would
call them; who wants another order writes a loop like `_train` with the same functions.

A run's folder has, besides its checkpoints:

    settings.json      what it was started with
    findings.jsonl     what was noticed, before and while it ran
    history.csv        a row per epoch, and the same as history.jsonl
    time.json          how long it took
    best.safetensors   the model at its best epoch, ready for `load_classifier`
    last.safetensors   the model at the end
    tensorboard/       a log for TensorBoard, if that was asked for
    exports.jsonl      deployment files of it, if `torchkeep export` made any
    report.html        how it went, how good the best model is, and what it gets wrong
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.errors import TrainingDiverged
from torchkeep.report import write_report
from torchkeep.training.averaging import moving_average
from torchkeep.training.checkup import check_up
from torchkeep.training.classifier import read_card, save_classifier
from torchkeep.training.data.identity import identity_of
from torchkeep.training.data.samples import check_labels, length_of
from torchkeep.training.data.shares import SharedBatches, SharedSamples
from torchkeep.training.data.workers import as_without_workers
from torchkeep.training.diagnosis import Finding, Watch
from torchkeep.training.diagnosis.epochs import Epoch
from torchkeep.training.distributed.processes import check_alike, ranks_here
from torchkeep.training.distributed.strategies import strategy_of
from torchkeep.training.evaluation import Answers, answers, evaluate, interleaved, joined
from torchkeep.training.fitting import image_of
from torchkeep.training.loop import computing_in, total_loss, train_epoch
from torchkeep.training.machine import computing_as_said, memory_format, seed_rank
from torchkeep.training.optimizing import factor, set_rates
from torchkeep.training.preparing import (
    Prepared,
    class_weights_of,
    loaders,
    loss_of,
    rates_of,
    schedule_of,
)
from torchkeep.training.quantizing import fake_quantize, input_ranges
from torchkeep.training.records.findings import add_findings, forget_findings, read_findings
from torchkeep.training.records.history import METRIC, best_epoch, with_times, write_history
from torchkeep.training.records.names import BEST_FILE, LAST_FILE, REPORT_FILE
from torchkeep.training.records.reporting import report_of
from torchkeep.training.records.settings import check_settings, write_settings
from torchkeep.training.records.tensorboard import LOG_FOLDER, event_log
from torchkeep.training.records.timing import Times
from torchkeep.training.surgery import unfreeze_at


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened while training."""

    kind: str
    """`begun`, `step`, `epoch`, or `found`."""
    step: int
    """Finished steps."""
    num_steps: int
    """Steps in all."""
    epoch: int
    """Finished epochs, which is also the number of the running one."""
    batch: int
    """Finished batches of the running epoch."""
    values: Mapping[str, float]
    """What was measured."""
    finding: Finding | None = None
    """What was found."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a training has led to."""

    best: Path
    """The file of the best model."""
    best_epoch: int
    """The epoch it is of, from 0."""
    history: tuple[Mapping[str, float], ...]
    """One row per epoch: see `Checkpointer.history`."""
    answers: Answers
    """What the best model says of the validation data."""
    stopped_early: bool
    """Whether it ended since nothing got better."""
    times: Mapping[int, Mapping[str, float]]
    """By epoch, what the history has not, since it differs from run to run: see `Times.rows`."""
    seconds: float
    """How long the training took in all."""


def retrain(
    prepared: Prepared,
    run: str | os.PathLike[str],
    *,
    notify: Callable[[Event], object] = lambda _: None,
    metadata: Mapping[str, Any] | None = None,
) -> Result:
    """Train, or go on with a run that was broken off; return what it has led to.

    If a process group is initialised, its processes train together, and all call this alike: see
    `torchkeep.training.distributed`. The first one writes the files, and tells what happens.

    Args:
        prepared: what `prepare` returned.
        run: the run's folder; one that holds a run of the same network is gone on with.
        notify: is called with what happens.
        metadata: plain values that each checkpoint keeps as well.

    Raises:
        TrainingDiverged: the loss is not finite; the last checkpoint is kept.
        Preempted: a signal asked to stop; everything is saved.
        CheckpointProblem: the folder holds another run, or one with other settings.
        OutOfMemory: a batch is too large for the device.
        WrongArgument: a label is that of no class, or the processes have other data each.
    """
    with computing_as_said(prepared.settings, prepared.device), as_without_workers():
        try:
            return _Training(prepared, Path(run), notify, metadata or {}).run()
        except TrainingDiverged as error:
            error.advice = (
                "Start anew, in another folder, with a lower learning rate (--find-lr suggests "
                "one), a warm-up (--warmup-epochs 1), or --clip-norm 1."
            )
            raise


class _Training:
    """One process of a run."""

    def __init__(
        self,
        prepared: Prepared,
        run: Path,
        notify: Callable[[Event], object],
        metadata: Mapping[str, Any],
    ) -> None:
        self.prepared, self.folder = prepared, run
        self.metadata = metadata
        self.settings = prepared.settings
        self.model = prepared.start.model
        for part in (prepared.data.train, prepared.data.val):
            check_labels(part, len(prepared.card.classes))
        self.ranks = ranks_here()
        self.notify: Callable[[Event], object] = notify if self.ranks.is_first else lambda _: None
        self.train_loader, self.val_loader = loaders(prepared)
        if not self.ranks.is_alone:
            seed_rank(self.settings, self.ranks.rank)
        self.times = Times(run, prepared.device, is_kept=self.ranks.is_first)
        self.log: Callable[[Event], object] = lambda _: None
        per_epoch = -(-len(self.train_loader) // self.settings.accumulate)
        self.num_steps = self.settings.epochs * per_epoch
        self.num_warmup = round(self.settings.warmup_epochs * per_epoch)
        decay, precision = self.settings.ema, self.settings.precision
        self.ema = None if decay is None else moving_average(self.model, decay)
        device_type = prepared.device.type
        self.scaler = torch.amp.GradScaler(device_type) if precision == "fp16" else None

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> Result:
        stopped = False
        identity = identity_of(self.prepared.data, self.prepared.card.preprocessing)
        check_alike(self.ranks.every(lambda: identity))
        check_settings(self.folder, self.settings, identity)
        self._share()
        with self._checkpointer() as ckpt:
            self.ckpt = ckpt
            if self.ranks.is_first:
                write_settings(self.folder, self.settings, identity)
            if not ckpt.num_steps:
                self.ranks.first(self._begin_anew)
            self._tell("begun", {})
            self.watch = self._watch()
            with self.times, self._log() as self.log:
                for epoch in ckpt.epochs(self.settings.epochs):
                    if stopped := self._has_stalled():
                        break
                    self._epoch(epoch)
        self._save(LAST_FILE, {})
        result = self._result(stopped)
        self.ranks.first(lambda: self._report(result))
        return result

    def _share(self) -> None:
        """Have the network ready to be trained, by this process or by several."""
        early: list[Finding] = []
        if self.settings.shard and self.settings.check and not list_checkpoints(self.folder):
            # The checks train copies of a network, and a piece of one can't be copied.
            early = self.ranks.first(lambda: check_up(self.prepared))
        self.early = early
        sampler = self.train_loader.batch_sampler
        shares = sampler if isinstance(sampler, SharedBatches) else None
        with _parameters_of(self.prepared.optimizer, self.model):
            self.strategy = strategy_of(self.model, self.ema, self.settings, shares)
        weights = class_weights_of(self.prepared)
        self.loss_fn = self.strategy.weighed(loss_of(self.prepared), weights)

    def _begin_anew(self) -> None:
        forget_findings(self.folder)
        if self.settings.check:
            self._found(self.early if self.settings.shard else check_up(self.prepared))

    def _report(self, result: Result) -> None:
        report = report_of(self.prepared, result, read_findings(self.folder))
        write_report(self.folder / REPORT_FILE, report, overwrite=True)

    def _checkpointer(self) -> Checkpointer:
        return Checkpointer(
            self.folder,
            model=self.model,
            optimizer=self.prepared.optimizer,
            scaler=self.scaler,
            ema=self.ema,
            seed=self.settings.seed,
            metadata={
                **self.metadata,
                "data": self.prepared.data.source,
                "arch": self.prepared.card.arch,
                "weights": self.prepared.start.weights,
                "classes": list(self.prepared.card.classes),
                "settings": self.settings.to_json(),
            },
            every_steps=self.settings.every_steps,
            keep_last=2,
            keep_best=(METRIC, "max"),
            signals=("SIGTERM", "SIGUSR1", "SIGINT"),
            stop_on_nan=True,
            allow_inexact=self.settings.allow_inexact,
        )

    def _epoch(self, epoch: int) -> None:
        """Train for an epoch, evaluate the network, and keep and tell what was measured."""
        optimizer, precision = self.prepared.optimizer, self.settings.precision
        self._train(epoch)
        mine = evaluate(
            self.judged,
            self.val_loader,
            device=self.prepared.device,
            precision=precision,
            num_samples=self._num_own,
        )
        # What fails is raised by whom it concerns: others may be in the midst of the same network.
        found = mine if self.ranks.is_alone else joined(self.ranks.every(lambda: mine))
        rate = max(group["lr"] for group in optimizer.param_groups)
        metrics = {"val_loss": found.loss, METRIC: found.accuracy, "lr": rate}
        self.ckpt.metrics(**metrics)
        row = {"epoch": epoch, "step": self.ckpt.num_steps, **self.ckpt.means, **metrics}
        history = [*self.ckpt.history, row]
        if best_epoch(history) == epoch:
            self._save(BEST_FILE, {METRIC: found.accuracy})
        if self.settings.check:
            self._found(self.watch.after_epoch(found))
        rows = with_times(history, self.times.rows)
        self.times.keep()
        if self.ranks.is_first:
            write_history(self.folder, rows)
        self._tell("epoch", rows[-1])

    def _train(self, epoch: int) -> None:
        """Unfreeze what is due in an epoch, and train."""
        settings, optimizer = self.settings, self.prepared.optimizer
        unfreeze_at(self.model, epoch, schedule_of(settings), optimizer, **rates_of(settings))
        self.watch.before_epoch()
        self.strategy.begin_epoch(self._try_batch)
        begun, num_before = self.times.now(), self._num_images()
        train_epoch(
            self.strategy.computing,
            self.strategy.batches(
                self.ckpt.batches(self.train_loader), lambda: self.ckpt.num_batches
            ),
            optimizer,
            loss_fn=self.loss_fn,
            device=self.prepared.device,
            precision=settings.precision,
            scaler=self.scaler,
            accumulate=settings.accumulate,
            clip_norm=settings.clip_norm,
            memory_format=memory_format(settings),
            after_backward=self._after_backward if settings.check else None,
            before_step=self._set_rate,
            after_step=self._after_step,
        )
        self.times.add(epoch, begun, self._num_images() - num_before)

    def _try_batch(self, computing: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        """Return the loss of a batch like those to come, of zeros."""
        prepared, settings = self.prepared, self.settings
        image = image_of(prepared.data.train, prepared.card.preprocessing)
        count = settings.batch_size // self.ranks.size
        images = image.expand(count, *image.shape).clone().to(prepared.device)
        labels = torch.zeros(count, dtype=torch.int64, device=prepared.device)
        self.model.train()
        with computing_in(settings.precision, prepared.device):
            return total_loss(computing(images.to(memory_format=memory_format(settings))), labels)

    @property
    def _num_own(self) -> int | None:
        """How many samples for validation are this process's own; None for all."""
        sampler = self.val_loader.sampler
        return sampler.num_own if isinstance(sampler, SharedSamples) else None

    def _log(self) -> AbstractContextManager[Callable[[Event], object]]:
        if not (self.settings.tensorboard and self.ranks.is_first):
            return nullcontext(lambda _: None)
        rows = with_times(self.ckpt.history, self.times.rows)
        optimizer, step = self.prepared.optimizer, self.ckpt.num_steps
        return event_log(self.folder / LOG_FOLDER, optimizer, step, rows)

    def _num_images(self) -> int:
        """Return how many images of the running epoch are done."""
        num_steps = self.ckpt.num_steps - sum(int(row["step"]) for row in self.ckpt.history[-1:])
        num_seen = num_steps * self.settings.accumulate * self.settings.batch_size
        return min(num_seen, length_of(self.prepared.data.train))

    def _watch(self) -> Watch:
        num_val = length_of(self.prepared.data.val)
        epochs = [
            Epoch(row["loss"], row["val_loss"], row[METRIC], num_val) for row in self.ckpt.history
        ]
        return Watch(
            self.model,
            self.prepared.optimizer,
            len(self.prepared.card.classes),
            epochs=epochs,
            num_steps=self.ckpt.num_steps,
            told=read_findings(self.folder),
        )

    def _after_backward(self) -> None:
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        self._found(self.watch.after_backward(scale=scale))

    def _found(self, findings: Iterable[Finding]) -> None:
        """Tell what is new of some findings, and keep it with the run."""
        if (found := list(findings)) and self.ranks.is_first:
            for item in add_findings(self.folder, found):
                self._tell("found", {}, item)

    def _set_rate(self) -> None:
        step = self.ckpt.num_steps
        multiplier = factor(self.settings.schedule, step, self.num_steps, self.num_warmup)
        set_rates(self.prepared.optimizer, multiplier)

    def _after_step(self, loss: float) -> None:
        loss = self.strategy.agreed(loss)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.ckpt.step(loss=loss)
        self._tell("step", {"loss": loss})
        if self.settings.check:
            self._found(self.watch.after_step(loss))

    def _tell(self, kind: str, values: Mapping[str, float], finding: Finding | None = None) -> None:
        ckpt = self.ckpt
        place = ckpt.num_steps, self.num_steps, ckpt.epoch, ckpt.num_batches
        event = Event(kind, *place, values, finding)
        self.log(event)
        self.notify(event)

    def _has_stalled(self) -> bool:
        patience, history = self.settings.patience, self.ckpt.history
        return patience is not None and len(history) - 1 - best_epoch(history) >= patience

    def _save(self, name: str, metric: Mapping[str, float]) -> None:
        card = self.prepared.card
        if self.settings.qat:
            card = replace(card, qat=input_ranges(self.judged))
        model = self.strategy.plain(self.judged)
        if self.ranks.is_first:
            save_classifier(
                model,
                card,
                self.folder / name,
                metadata={"weights": self.prepared.start.weights, "epoch": self.ckpt.epoch},
                metric=metric or None,
                overwrite=True,
            )

    def _result(self, stopped: bool) -> Result:
        history = self.ckpt.history
        best = self.folder / BEST_FILE
        model = self.judged
        self.ranks.meet()  # the first one has written the file before
        self.strategy.load(model, best)
        if (card := read_card(best)) is not None and card.qat is not None:
            fake_quantize(model, card.qat)
        own = self._num_own
        said = answers(model, self.val_loader, device=self.prepared.device, num_samples=own)
        if not self.ranks.is_alone:
            said = interleaved(self.ranks.every(lambda: said))
        times = self.times
        return Result(
            best, best_epoch(history), tuple(history), said, stopped, times.rows, times.total
        )


@contextmanager
def _parameters_of(optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
    """Have an optimizer hold the parameters that a network gets within the block for its own."""
    names = {id(item): name for name, item in model.named_parameters()}
    groups = [[names[id(item)] for item in group["params"]] for group in optimizer.param_groups]
    yield
    now = dict(model.named_parameters())
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [now[name] for name in own]
