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
    report.html        how it went, how good the best model is, and what it gets wrong
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from torchkeep.checkpointing import Checkpointer, seed_all
from torchkeep.checkpointing.preemption import SignalWatch
from torchkeep.errors import OutOfMemory, WrongArgument
from torchkeep.loading import load_into
from torchkeep.report import write_report
from torchkeep.training.checkup import add_findings, check_up, files_of, read_findings
from torchkeep.training.classifier import Card, save_classifier
from torchkeep.training.data import Data, Mixed, Preprocessing, labels_of, open_data, transform_of
from torchkeep.training.data.identity import digest_of
from torchkeep.training.data.preprocessing import for_channels, for_size
from torchkeep.training.data.transforms import refuse_picture
from torchkeep.training.data.workers import as_without_workers
from torchkeep.training.diagnosis import Finding, RateCurve, Watch, find_learning_rate
from torchkeep.training.diagnosis.trial import trial
from torchkeep.training.evaluation import Answers, answers, evaluate
from torchkeep.training.fitting import check_fit, image_of, is_out_of_memory
from torchkeep.training.history import write_history
from torchkeep.training.loop import Loss, train_epoch
from torchkeep.training.optimizing import WEIGHT_DECAY, factor, make_optimizer, set_rates
from torchkeep.training.reporting import report_of
from torchkeep.training.settings import Settings, check_settings, write_settings
from torchkeep.training.starting import Start, start
from torchkeep.training.surgery import (
    Schedule,
    check_schedule,
    freeze,
    freeze_all_but_head,
    freeze_stages,
    parameter_groups,
    unfreeze_at,
)
from torchkeep.training.tensorboard import LOG_FOLDER, event_log, require_tensorboard
from torchkeep.training.timing import Times
from torchkeep.wording import printable

BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
REPORT_FILE = "report.html"
METRIC = "val_accuracy"
"""What the best epoch is told by."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a training needs."""

    settings: Settings
    """How to train."""
    data: Data
    """What on, with its transforms."""
    start: Start
    """What from."""
    card: Card
    """What it will be."""
    optimizer: Optimizer
    """Of what is trained at first."""
    device: torch.device
    """Where to compute."""
    metric: str = METRIC
    """What the best epoch is told by, the higher the better."""


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


def prepare(source: str | os.PathLike[str], settings: Settings) -> Prepared:
    """Open the data, make the network, freeze what is not trained, and make the optimizer.

    Raises:
        TorchkeepError: something is missing or of no use; the message says what.
        MissingExtra: a log for TensorBoard is wanted, which is not installed.
    """
    if settings.tensorboard:
        require_tensorboard()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        # What cuBLAS needs to be deterministic, before CUDA is used for the first time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    seed_all("torchkeep.training", settings.seed)
    torch.manual_seed(torch.initial_seed())  # the generators of other devices as well
    data = open_data(
        source,
        val_share=settings.val_share,
        seed=settings.seed,
        skip_broken=settings.skip_broken,
        download=settings.download,
    )
    if len(data.classes) < 2:
        raise WrongArgument(
            f"{data.source} has images of one class alone, {printable(data.classes[0])}: there is "
            "nothing to tell apart",
            advice="Put the images of each class into a folder of its own.",
        )
    begun = start(settings.arch, settings.weights, data.classes, settings.channels)
    recipe = _recipe(begun.preprocessing, settings.size, settings.channels)
    _check_channels(data, recipe, is_given=settings.channels is not None)
    device = device_of(settings.device)
    model = begun.model.to(device).to(memory_format=memory_format(settings))
    freeze_as_said(model, settings.freeze)
    check_fit(
        model,
        begun.arch,
        image_of(data.train, recipe),
        len(data.classes),
        batch_size=settings.batch_size,
        precision=settings.precision,
    )
    check_schedule(model, _schedule(settings))
    factor(settings.schedule, 0, 1)  # refuses one that there is not
    groups = parameter_groups(
        model, settings.lr, decay=settings.lr_decay, weight_decay=decay_of(settings)
    )
    return Prepared(
        settings,
        data.transformed(transform_of(recipe, settings.augment), transform_of(recipe)),
        begun,
        Card(begun.arch, data.classes, recipe, begun.structure, begun.input_channels),
        make_optimizer(settings.optimizer, groups),
        device,
    )


def freeze_as_said(model: nn.Module, what: str) -> None:
    """Freeze what `Settings.freeze` says.

    Raises:
        WrongArgument: it says something that the model has not.
    """
    if what == "all-but-head":
        freeze_all_but_head(model)
    elif what.isdecimal():
        freeze_stages(model, int(what))
    elif what.startswith("all-but:"):
        freeze(model, except_=what.removeprefix("all-but:").split(","))
    elif what != "none":
        raise WrongArgument(
            f"nothing is frozen by {what!r}",
            advice="Say none, all-but-head, a number of stages, or all-but:NAME,NAME.",
        )


def _schedule(settings: Settings) -> Schedule:
    return {epoch: _stage(what) for epoch, what in settings.unfreeze.items()}


def _stage(what: str) -> int | list[str]:
    if what.isdecimal():
        return int(what)
    return ["*"] if what == "all" else what.split(",")


def decay_of(settings: Settings) -> float:
    """Return the weight decay: the one that was given, or what is usual with the optimizer."""
    if settings.weight_decay is not None:
        return settings.weight_decay
    return WEIGHT_DECAY.get(settings.optimizer, 0.0)


def _identity(prepared: Prepared) -> dict[str, Any]:
    """Return what tells a run's data from others, for a run that is gone on with."""
    data = prepared.data
    return {
        "source": data.source,
        "classes": list(data.classes),
        "num_train": len(data.train),  # type: ignore[arg-type]
        "num_val": len(data.val),  # type: ignore[arg-type]
        "files_and_labels": digest_of(data),
        "preprocessing": prepared.card.preprocessing.to_json(),
    }


def device_of(name: str) -> torch.device:
    """Return the device of this name; `auto` takes the fastest that there is."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise WrongArgument(
                f"{name!r} is no device that there is here ({str(error).splitlines()[0]})",
                advice="Take auto, or cpu.",
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def memory_format(settings: Settings) -> torch.memory_format:
    """Return how images and weights are laid out in memory."""
    return torch.channels_last if settings.channels_last else torch.preserve_format


def _recipe(recipe: Preprocessing | None, size: int | None, channels: int | None) -> Preprocessing:
    if recipe is None:
        recipe = for_size(size or 224)
    elif size is not None:
        resize = None if recipe.resize is None else round(recipe.resize * size / recipe.height)
        recipe = replace(recipe, height=size, width=size, resize=resize)
    return recipe if channels is None else for_channels(recipe, channels)


def _check_channels(data: Data, recipe: Preprocessing, *, is_given: bool) -> None:
    """Refuse pictures where tensors are needed, and tensors of other channels than were given.

    Raises:
        WrongArgument: they are pictures, or tensors of other channels than they should have.
    """
    is_picture = recipe.num_channels in (1, 3)
    if is_picture and not is_given:
        return
    with trial(()):  # a data set may draw random numbers
        sample = None if files_of(data.train) else data.train[0][0]
    if not isinstance(sample, torch.Tensor):
        if not is_picture:
            refuse_picture(recipe.num_channels)
    elif sample.ndim != 3 or len(sample) != recipe.num_channels:
        raise WrongArgument(
            f"{data.source} gives tensors of the shape {list(sample.shape)}, and the network takes "
            f"[{recipe.num_channels}, height, width]",
            advice="Give the number of its channels with --channels.",
        )


def loaders(prepared: Prepared) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of the training data and of the validation data."""
    settings, data = prepared.settings, prepared.data
    mixed = None if settings.mix == "none" else Mixed(settings.mix, len(data.classes))
    num_samples = len(data.train)  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "num_workers": settings.workers,
        "pin_memory": prepared.device.type == "cuda",
        "persistent_workers": settings.workers > 0,
        "worker_init_fn": _leave_signals,
    }
    train: DataLoader[Any] = DataLoader(
        data.train,
        settings.batch_size,
        shuffle=True,
        collate_fn=mixed,
        # A BatchNorm can't be trained on a single sample.
        drop_last=num_samples > settings.batch_size and num_samples % settings.batch_size == 1,
        **options,
    )
    # An iterator draws a seed for its workers, once per process if they persist. Out of a generator
    # of its own, so that the training's are the same with any number of workers and processes.
    own = torch.Generator().manual_seed(settings.seed)
    return train, DataLoader(data.val, 2 * settings.batch_size, generator=own, **options)


def _leave_signals(worker: int) -> None:
    del worker
    SignalWatch.leave_to_parent()


def try_rates(
    prepared: Prepared, progress: Callable[[int, int], object] = lambda _done, _total: None
) -> RateCurve:
    """Return the losses of a training's first steps at growing rates; nothing is changed.

    Args:
        prepared: what `prepare` returned.
        progress: is called with the steps that were made, and with how many there are.

    Raises:
        OutOfMemory: a batch is too large for the device.
    """
    with _deterministic(prepared.settings.deterministic), _telling_of_memory(prepared):
        return find_learning_rate(
            prepared.start.model,
            prepared.optimizer,
            loaders(prepared)[0],
            loss_fn=loss_of(prepared),
            progress=progress,
        )


def retrain(
    prepared: Prepared,
    run: str | os.PathLike[str],
    *,
    notify: Callable[[Event], object] = lambda _: None,
) -> Result:
    """Train, or go on with a run that was broken off; return what it has led to.

    Args:
        prepared: what `prepare` returned.
        run: the run's folder; one that holds a run of the same network is gone on with.
        notify: is called with what happens.

    Raises:
        TrainingDiverged: the loss is not finite; the last checkpoint is kept.
        Preempted: a signal asked to stop; everything is saved.
        CheckpointProblem: the folder holds another run, or one with other settings.
        OutOfMemory: a batch is too large for the device.
    """
    deterministic = _deterministic(prepared.settings.deterministic)
    with deterministic, _telling_of_memory(prepared), as_without_workers():
        return _Training(prepared, Path(run), notify).run()


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _telling_of_memory(prepared: Prepared) -> Iterator[None]:
    """Say what to do where there is not enough memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"there is not enough memory on {prepared.device} for batches of "
            f"{prepared.settings.batch_size}",
            advice="Make them smaller and accumulate (--batch-size 8 --accumulate 4), or try "
            "--precision bf16, a smaller --size, or --freeze all-but-head.",
        ) from None


class _Training:
    """One process of a run."""

    def __init__(self, prepared: Prepared, run: Path, notify: Callable[[Event], object]) -> None:
        self.prepared, self.folder, self.notify = prepared, run, notify
        self.settings = prepared.settings
        self.model = prepared.start.model
        self.train_loader, self.val_loader = loaders(prepared)
        self.times = Times(run, prepared.device)
        self.log: Callable[[Event], object] = lambda _: None
        per_epoch = -(-len(self.train_loader) // self.settings.accumulate)
        self.num_steps = self.settings.epochs * per_epoch
        self.num_warmup = round(self.settings.warmup_epochs * per_epoch)
        self.computing: Any = torch.compile(self.model) if self.settings.compile else self.model
        self.loss_fn = loss_of(prepared)
        self.ema = _average(self.model, self.settings.ema)
        self.scaler = (
            torch.amp.GradScaler(prepared.device.type)
            if self.settings.precision == "fp16"
            else None
        )

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> Result:
        stopped = False
        identity = _identity(self.prepared)
        check_settings(self.folder, self.settings, identity)
        with self._checkpointer() as ckpt:
            self.ckpt = ckpt
            write_settings(self.folder, self.settings, identity)
            if self.settings.check and not ckpt.num_steps:
                self._found(check_up(self.prepared))
            self._tell("begun", {})
            self.watch = self._watch()
            with self.times, self._log() as self.log:
                for epoch in ckpt.epochs(self.settings.epochs):
                    if stopped := self._has_stalled():
                        break
                    self._epoch(epoch)
        self._save(LAST_FILE, {})
        result = self._result(stopped)
        write_report(
            self.folder / REPORT_FILE,
            report_of(self.prepared, result, read_findings(self.folder)),
            overwrite=True,
        )
        return result

    def _checkpointer(self) -> Checkpointer:
        return Checkpointer(
            self.folder,
            model=self.model,
            optimizer=self.prepared.optimizer,
            scaler=self.scaler,
            ema=self.ema,
            seed=self.settings.seed,
            metadata={
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
        settings, optimizer = self.settings, self.prepared.optimizer
        unfreeze_at(
            self.model,
            epoch,
            _schedule(settings),
            optimizer,
            lr=settings.lr,
            decay=settings.lr_decay,
            weight_decay=decay_of(settings),
        )
        self.watch.before_epoch()
        begun, num_before = self.times.now(), self._num_images()
        train_epoch(
            self.computing,
            self.ckpt.batches(self.train_loader),
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
        found = evaluate(
            self.judged,
            self.val_loader,
            device=self.prepared.device,
            precision=settings.precision,
        )
        rate = max(group["lr"] for group in optimizer.param_groups)
        metrics = {"val_loss": found.loss, METRIC: found.accuracy, "lr": rate}
        self.ckpt.metrics(**metrics)
        row = {"epoch": epoch, "step": self.ckpt.num_steps, **self.ckpt.means, **metrics}
        rows = [*self.ckpt.history, row]
        if best_epoch(rows) == epoch:
            self._save(BEST_FILE, {METRIC: found.accuracy})
        if settings.check:
            self._found(self.watch.after_epoch(found))
        told = self._with_times(rows)
        write_history(self.folder, told)
        self.times.keep()
        self._tell("epoch", told[-1])

    def _with_times(self, rows: Iterable[Mapping[str, float]]) -> list[Mapping[str, float]]:
        return [{**row, **self.times.rows.get(at, {})} for at, row in enumerate(rows)]

    def _log(self) -> AbstractContextManager[Callable[[Event], object]]:
        if not self.settings.tensorboard:
            return nullcontext(lambda _: None)
        folder, rows = self.folder / LOG_FOLDER, self._with_times(self.ckpt.history)
        return event_log(folder, self.prepared.optimizer, self.ckpt.num_steps, rows)

    def _num_images(self) -> int:
        """Return how many images of the running epoch are done."""
        num_steps = self.ckpt.num_steps - sum(int(row["step"]) for row in self.ckpt.history[-1:])
        num_samples: int = len(self.prepared.data.train)  # type: ignore[arg-type]
        return min(num_steps * self.settings.accumulate * self.settings.batch_size, num_samples)

    def _watch(self) -> Watch:
        return Watch(self.model, self.prepared.optimizer, len(self.prepared.card.classes))

    def _after_backward(self) -> None:
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        self._found(self.watch.after_backward(scale=scale))

    def _found(self, findings: Iterable[Finding]) -> None:
        """Tell what is new of some findings, and keep it with the run."""
        if found := list(findings):
            for item in add_findings(self.folder, found):
                self._tell("found", {}, item)

    def _set_rate(self) -> None:
        step = self.ckpt.num_steps
        multiplier = factor(self.settings.schedule, step, self.num_steps, self.num_warmup)
        set_rates(self.prepared.optimizer, multiplier)

    def _after_step(self, loss: float) -> None:
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
        save_classifier(
            self.judged,
            self.prepared.card,
            self.folder / name,
            metadata={"weights": self.prepared.start.weights, "epoch": self.ckpt.epoch},
            metric=metric or None,
            overwrite=True,
        )

    def _result(self, stopped: bool) -> Result:
        history = self.ckpt.history
        best = self.folder / BEST_FILE
        model = self.judged
        load_into(model, best)
        said = answers(model, self.val_loader, device=self.prepared.device)
        times = self.times
        return Result(
            best, best_epoch(history), tuple(history), said, stopped, times.rows, times.total
        )


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the epoch of the highest accuracy, of the lowest loss among several; 0 if none is."""
    order = {at: (row[METRIC], -row["val_loss"], -at) for at, row in enumerate(history)}
    return max(order, key=lambda at: order[at], default=0)


def loss_of(prepared: Prepared) -> Loss:
    """Return the loss that is minimised."""
    weight = None
    if prepared.settings.class_weights:
        labels = torch.tensor(labels_of(prepared.data.train))
        counts = labels.bincount(minlength=len(prepared.data.classes)).clamp(min=1)
        weight = (len(labels) / (len(counts) * counts)).float().to(prepared.device)
    return partial(
        functional.cross_entropy, weight=weight, label_smoothing=prepared.settings.label_smoothing
    )


def _average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
