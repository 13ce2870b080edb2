"""pandas objects as pickles and in checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from frameworks.expected import expecting
from frameworks.networks import SmallNet


def _objects() -> dict[str, Any]:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": ["x", "y"]})
    return {
        "frame": frame,
        "series": frame["a"],
        "categorical": frame.astype({"c": "category"}),
        "dates": pd.DataFrame({"t": pd.date_range("2026-01-01", periods=3, tz="UTC")}),
        "multi_index": frame.set_index(["a", "c"]),
        "nullable": pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
        "timestamp": {"at": pd.Timestamp("2026-01-01"), "took": pd.Timedelta("1h")},
        "interval": pd.Series(pd.interval_range(0, 3)),
        "period": pd.Series(pd.period_range("2026-01", periods=2, freq="M")),
        "sparse": pd.Series(pd.arrays.SparseArray([0, 0, 1])),
    }


def write(folder: Path) -> None:
    facts = {"role": "object", "verdict": "needs-trust", "framework": None}
    for name, value in _objects().items():
        for protocol in (2, 5):
            path = expecting(folder / f"{name}_{protocol}.pkl", container="pickle", **facts)
            path.write_bytes(pickle.dumps(value, protocol))
        path = expecting(folder / f"{name}.pt", role="checkpoint", state_dicts={"model": "model"})
        torch.save({"model": SmallNet().state_dict(), "history": value}, path)
    frame = _objects()["frame"]
    frame.to_pickle(expecting(folder / "own.pkl", **facts))
    frame.to_pickle(expecting(folder / "own.pkl.gz"))
