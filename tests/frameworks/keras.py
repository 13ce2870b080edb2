"""Keras: .keras archives, HDF5 models, HDF5 weights."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np

from frameworks.expected import expecting


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    layers = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    model.save(expecting(folder / "model.keras", framework="Keras"))
    model.save(expecting(folder / "model.h5", container="hdf5", framework="Keras"))
    model.save_weights(expecting(folder / "model.weights.h5", container="hdf5"))
