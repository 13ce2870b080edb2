"""Retrain the network for another task: only the digits 5 to 9, which become labels 0 to 4.

The backbone comes from the trained network and is frozen; the head is new.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from torchkeep.checkpointing import Checkpointer
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.demo.child import Report, parser, settings_of
from torchkeep.demo.digits import Settings, loaders, new_network, prepare
from torchkeep.loading import load_into
from torchkeep.saving import save
from torchkeep.training import evaluate, freeze, replace_head, train_epoch, trainable

CLASSES = ("5", "6", "7", "8", "9")


def main() -> None:
    """Parse the options, transfer, and report."""
    options = parser("Transfer ResNet18 from ten digits to five.")
    options.add_argument("--run", type=Path, required=True, help="folder for the checkpoints")
    options.add_argument("--weights", type=Path, required=True, help="the trained parameters")
    options.add_argument("--save-to", type=Path, required=True, help="the file to write")
    given = options.parse_args()
    report = Report(given.report)
    transfer(given.run, given.data, given.weights, given.save_to, settings_of(given), report)


def transfer(
    run: Path, data: Path, weights: Path, save_to: Path, settings: Settings, report: Report
) -> None:
    """Load what fits, freeze it, train the new head, save, and compare the backbone."""
    prepare(settings)
    train_loader, val_loader = loaders(data, settings, classes=CLASSES)
    model = new_network()
    head = replace_head(model, len(CLASSES))
    loaded = load_into(model, weights, adapt={f"{head.name}.*": "skip"})
    frozen = freeze(model, except_=(head.name,))
    before = {part: fingerprint(state) for part, state in _parts(model, head.name).items()}
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    with Checkpointer(run, model=model, optimizer=optimizer, seed=settings.seed) as ckpt:
        for epoch in ckpt.epochs(settings.transfer_epochs):
            train_epoch(
                model,
                ckpt.batches(train_loader),
                optimizer,
                after_step=lambda loss: ckpt.step(loss=loss),
            )
            result = evaluate(model, val_loader)
            ckpt.metrics(accuracy=result.accuracy)
            Console().print(
                f"   epoch {epoch + 1} of {settings.transfer_epochs}   "
                f"loss {ckpt.means['loss']:.4f}   validation {result.accuracy:.1%}",
                highlight=False,
            )
    save(model, save_to, metadata={"classes": list(CLASSES)})
    after = {part: fingerprint(state) for part, state in _parts(model, head.name).items()}
    report.add(
        "transferred",
        num_loaded=len(loaded.loaded),
        skipped=list(loaded.skipped),
        num_frozen=len(frozen),
        before=before,
        after=after,
        accuracy=result.accuracy,
    )


def _parts(model: torch.nn.Module, head: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state dict in two parts: all but the head with its statistics, and the head."""
    state = model.state_dict()
    in_head = {name for name in state if name.startswith(f"{head}.")}
    return {
        "backbone": {name: state[name] for name in state if name not in in_head},
        "head": {name: state[name] for name in state if name in in_head},
    }


if __name__ == "__main__":
    main()
