"""TabNet: its zip of weights and parameters, and the model pickled."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
from pytorch_tabnet.tab_model import TabNetClassifier

from frameworks.expected import expecting


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    model = TabNetClassifier(n_d=4, n_a=4, n_steps=1, verbose=0)
    labels = np.arange(32) % 2
    model.fit(rng.normal(size=(32, 4)).astype("f4"), labels, max_epochs=1, batch_size=16)
    expecting(folder / "tabnet.zip", container="archive", framework="TabNet")
    model.save_model(str(folder / "tabnet"))
    path = expecting(folder / "tabnet.pkl", framework="TabNet")
    path.write_bytes(pickle.dumps(model))
