"""Train ResNet18 on the digits, with checkpoints: an ordinary script, run as a child process.

    python -m torchkeep.demo.train_digits --run RUN --data DATA --report FILE

Run the same command again after it was killed, and it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from torchkeep.checkpointing import Checkpointer
from torchkeep.demo.child import Report, parser, settings_of
from torchkeep.demo.digits import Settings, loaders, new_network, prepare
from torchkeep.training import evaluate, train_epoch, trainable


def main() -> None:
    """Parse the options, train, and report every step."""
    options = parser("Train ResNet18 on handwritten digits.")
    options.add_argument("--run", type=Path, required=True, help="folder for the checkpoints")
    options.add_argument("--workers", type=int, default=0, help="processes that load images")
    given = options.parse_args()
    train(
        given.run, given.data, settings_of(given), Report(given.report), num_workers=given.workers
    )


def train(
    run: Path, data: Path, settings: Settings, report: Report, *, num_workers: int = 0
) -> None:
    """Train, or go on training, and show the progress on the terminal."""
    prepare(settings)
    train_loader, val_loader = loaders(data, settings, num_workers=num_workers)
    model = new_network()
    optimizer = torch.optim.AdamW(trainable(model), lr=2e-3, weight_decay=0.01)
    num_steps = settings.num_epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_steps)
    console = Console()
    with (
        Checkpointer(
            run,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            seed=settings.seed,
            metadata={"data": "scikit-learn's digits"},
            every_steps=settings.every_steps,
            keep_last=2,
            keep_best=("accuracy", "max"),
        ) as ckpt,
        _bar(console, num_steps, ckpt.num_steps) as advance,
    ):
        if ckpt.resumed_from is not None:
            report.add("resumed", step=ckpt.num_steps, epoch=ckpt.epoch)
            console.print(f"   goes on after step {ckpt.num_steps}", highlight=False)

        def after_step(loss: float) -> None:
            scheduler.step()
            ckpt.step(loss=loss)
            report.add("step", step=ckpt.num_steps, epoch=ckpt.epoch, batch=ckpt.num_batches)
            advance()

        for epoch in ckpt.epochs(settings.num_epochs):
            train_epoch(model, ckpt.batches(train_loader), optimizer, after_step=after_step)
            result = evaluate(model, val_loader)
            ckpt.metrics(accuracy=result.accuracy, num_correct=result.num_correct)
            console.print(
                f"   epoch {epoch + 1} of {settings.num_epochs}   "
                f"loss {ckpt.means['loss']:.4f}   validation {result.accuracy:.1%}",
                highlight=False,
            )
    report.add("finished", step=ckpt.num_steps)


@contextmanager
def _bar(console: Console, num_steps: int, start: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; yield what moves it on."""
    columns = (
        TextColumn("   training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    can_draw = console.is_terminal and not console.is_dumb_terminal
    progress = Progress(*columns, console=console, transient=True, disable=not can_draw)
    with progress:
        task = progress.add_task("training", total=num_steps, completed=start)
        yield lambda: progress.advance(task)


if __name__ == "__main__":
    main()
