"""Darts, GPyTorch, Pyro, spaCy, Stanza-like tools: models and states of smaller fields."""

from __future__ import annotations

import importlib
import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from frameworks.expected import expecting


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    writers: dict[str, Callable[[Path], None]] = {
        "darts": _darts,
        "gpytorch": _gpytorch,
        "pyro": _pyro,
        "spacy": _spacy,
        "tianshou": _tianshou,
        "torchdata": _torchdata,
    }
    found = 0
    for package, writer in writers.items():
        try:
            importlib.import_module(package)
        except ImportError:
            continue
        found += 1
        writer(folder)
    if not found:
        raise ModuleNotFoundError("none of them", name=" or ".join(writers))


def _darts(folder: Path) -> None:
    from darts import TimeSeries
    from darts.models import NBEATSModel

    series = TimeSeries.from_values(np.arange(40, dtype=np.float32))
    model = NBEATSModel(
        4,
        1,
        num_stacks=1,
        num_blocks=1,
        num_layers=1,
        layer_widths=4,
        n_epochs=1,
        batch_size=4,
        pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
    )
    model.fit(series)
    model.save(str(expecting(folder / "darts.pt", verdict="needs-trust")))
    expecting(folder / "darts.pt.ckpt", framework="Lightning", role="checkpoint")
    path = expecting(folder / "series.pkl", verdict="needs-trust")
    path.write_bytes(pickle.dumps(series))


def _gpytorch(folder: Path) -> None:
    import gpytorch

    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    torch.save(kernel, expecting(folder / "kernel_whole.pt", role="module"))
    torch.save(kernel.state_dict(), expecting(folder / "kernel.pt", role="state_dict"))


def _pyro(folder: Path) -> None:
    import pyro

    pyro.clear_param_store()
    pyro.param("a", torch.ones(3), constraint=torch.distributions.constraints.positive)
    pyro.get_param_store().save(str(expecting(folder / "pyro.pt")))


def _spacy(folder: Path) -> None:
    import spacy

    nlp = spacy.blank("en")
    expecting(folder / "spacy.pkl", verdict="needs-trust").write_bytes(pickle.dumps(nlp))


def _tianshou(folder: Path) -> None:
    from tianshou.data import Batch, ReplayBuffer

    buffer = ReplayBuffer(4)
    path = expecting(folder / "tianshou_buffer.pkl", framework="Tianshou")
    path.write_bytes(pickle.dumps(buffer))
    torch.save(Batch(a=np.ones(2)), expecting(folder / "tianshou_batch.pt", framework="Tianshou"))


def _torchdata(folder: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(list(range(8)), batch_size=2, shuffle=True)
    next(iter(loader))
    torch.save({"loader": loader.state_dict()}, expecting(folder / "loader.pt", role="object"))
