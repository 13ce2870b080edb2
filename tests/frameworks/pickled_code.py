"""cloudpickle and dill: functions, lambdas and classes that were defined in a script.

These files hold code, so `needs-trust` is the least that they deserve, and `dangerous` is no error:
they are here to see that they can be read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from frameworks.expected import expecting
from frameworks.networks import SmallNet


def _objects() -> dict[str, Any]:
    factor = 3

    class Local(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * factor

    return {
        "function": lambda x: x * factor,
        "class": Local,
        "module": Local(),
        "dictionary": {"a": 1, "weights": SmallNet().state_dict()},
    }


def write(folder: Path) -> None:
    found = 0
    for package in ("cloudpickle", "dill"):
        try:
            pickler = importlib.import_module(package)
        except ImportError:
            continue
        found += 1
        for name, value in _objects().items():
            path = expecting(folder / f"{package}_{name}.pkl", code=name != "dictionary")
            path.write_bytes(pickler.dumps(value))
            path = expecting(folder / f"{package}_{name}.pt", code=name != "dictionary")
            torch.save(value, path, pickle_module=pickler)
    if not found:
        raise ModuleNotFoundError("none of them", name="cloudpickle or dill")
