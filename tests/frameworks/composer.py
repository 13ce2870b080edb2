"""Composer: the checkpoints of its Trainer."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path

import torch.cuda.amp.grad_scaler as old_place
from torch.amp.grad_scaler import _refresh_per_optimizer_state
from torch.utils.data import DataLoader, TensorDataset

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures


def write(folder: Path) -> None:
    _mend_torch()
    from composer import Trainer
    from composer.algorithms import EMA
    from composer.models import ComposerClassifier
    from composer.optim import DecoupledAdamW

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for name, algorithms in (
        ("plain", []),
        ("ema", [EMA(half_life="1ba")]),
    ):
        model = ComposerClassifier(SmallNet(), num_classes=3)
        trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(TensorDataset(*pictures()), batch_size=4),
            max_duration="1ep",
            optimizers=DecoupledAdamW(model.parameters(), lr=1e-3),
            algorithms=algorithms,
            device="cpu",
            save_folder=str(folder / name),
            progress_bar=False,
        )
        trainer.fit()
        with contextlib.suppress(Exception):
            trainer.close()
    for path in folder.rglob("*.pt"):
        if not path.is_symlink():
            expecting(path, role="checkpoint", framework="Composer")


def _mend_torch() -> None:
    """Put a function back where Composer asks for it, which the newest torch has cleared."""
    old_place._refresh_per_optimizer_state = _refresh_per_optimizer_state
