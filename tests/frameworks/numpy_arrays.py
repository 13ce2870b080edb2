"""NumPy's own files, and arrays in pickles and checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frameworks.expected import expecting
from frameworks.networks import SmallNet

ARRAYS: dict[str, Any] = {
    "float64": np.arange(6.0).reshape(2, 3),
    "float32": np.ones((2, 2), np.float32),
    "float16": np.ones(3, np.float16),
    "int8": np.ones(3, np.int8),
    "bool": np.array([True, False]),
    "complex": np.ones(2, np.complex128),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
    "text": np.array(["cat", "dog"]),
    "bytes": np.array([b"cat", b"dog"]),
    "dates": np.array(["2026-01-01"], dtype="datetime64[D]"),
    "durations": np.array([5], dtype="timedelta64[s]"),
    "record": np.array([(1, 2.0)], dtype=[("id", "i4"), ("score", "f8")]),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(1.5),
    "long_double": np.ones(2, np.longdouble),
}
"""Arrays that hold no Python objects."""
OBJECT_ARRAYS: dict[str, Any] = {
    "objects": np.array([{"a": 1}, [1, 2], None], dtype=object),
    "ragged": np.array([np.ones(2), np.ones(3)], dtype=object),
    "words": np.array(["cat", "dog"], dtype=object),
}
SCALARS: dict[str, Any] = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.5),
    "int64": np.int64(5),
    "bool": np.bool_(True),
    "str": np.str_("cat"),
    "datetime": np.datetime64("2026-01-01"),
    "dtype": np.dtype("float32"),
    "type": np.float32,
}


def write(folder: Path) -> None:
    plain = {"container": "numpy", "verdict": "data-only", "framework": None}
    for name, array in ARRAYS.items():
        np.save(expecting(folder / f"{name}.npy", **plain), array)
    for name, array in OBJECT_ARRAYS.items():
        path = expecting(folder / f"{name}.npy", container="numpy", verdict="data-only")
        np.save(path, array, allow_pickle=True)
    np.savez(expecting(folder / "several.npz", **plain), **ARRAYS)
    np.savez_compressed(expecting(folder / "compressed.npz", **plain), **ARRAYS)
    weights = {key: value.numpy() for key, value in SmallNet().state_dict().items()}
    np.savez(expecting(folder / "weights.npz", **plain), **weights)
    np.savez(expecting(folder / "objects.npz", container="numpy"), **OBJECT_ARRAYS)
    _pickles(folder)


def _pickles(folder: Path) -> None:
    for name, array in (ARRAYS | OBJECT_ARRAYS).items():
        for protocol in (0, 2, 5):
            facts = {"container": "pickle", "verdict": "data-only", "framework": None}
            path = expecting(folder / f"{name}_{protocol}.pkl", **facts)
            path.write_bytes(pickle.dumps(array, protocol))
    for name, scalar in SCALARS.items():
        path = expecting(folder / f"scalar_{name}.pt", role="checkpoint", framework=None)
        torch.save({"state_dict": SmallNet().state_dict(), "best": scalar}, path)
    path = expecting(folder / "in_checkpoint.pt", role="checkpoint", state_dicts={"model": "model"})
    torch.save({"model": SmallNet().state_dict(), "history": ARRAYS["float64"]}, path)
    odd: dict[str, Any] = {
        "masked": np.ma.masked_array([1, 2], [True, False]),
        "matrix": np.matrix([[1, 2]]),
        "recarray": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "poly": np.poly1d([1, 2]),
        "random_state": np.random.RandomState(0),
        "generator": np.random.default_rng(0),
        "philox": np.random.Generator(np.random.Philox(0)),
        "ufunc": {"f": np.sqrt, "g": np.mean},
        "errstate": np.finfo(np.float32).dtype,
    }
    for name, value in odd.items():
        for protocol in (0, 2, 5):
            path = expecting(folder / f"{name}_{protocol}.pkl", framework=None)
            path.write_bytes(pickle.dumps(value, protocol))
