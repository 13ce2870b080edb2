"""Save, load, look into, checkpoint and resume PyTorch models, safely and exactly.

The names are resolved when they are first used: importing torchkeep imports neither torch nor
NumPy, and inspecting a file needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchkeep.errors import MissingExtra, TorchkeepError

if TYPE_CHECKING:
    from torchkeep.checkpointing import Checkpointer, capture, restore
    from torchkeep.comparing import Difference, diff
    from torchkeep.converting import ConvertReport, convert
    from torchkeep.exporting import Exported, export
    from torchkeep.identify import Inspection, Integrity, inspect, verify
    from torchkeep.identify.scan import Scanned, scan
    from torchkeep.loading import (
        ClassNames,
        LoadPlan,
        LoadReport,
        Replay,
        TensorFile,
        load,
        load_into,
        load_model,
        open,
        plan,
        replay,
    )
    from torchkeep.modes import evaluating
    from torchkeep.pickles.limits import Limits
    from torchkeep.rescuing import RescueReport, rescue
    from torchkeep.saving import SaveReport, save

__version__ = "0.1.0"

_HOMES = {
    "Checkpointer": "torchkeep.checkpointing",
    "capture": "torchkeep.checkpointing",
    "restore": "torchkeep.checkpointing",
    "Difference": "torchkeep.comparing",
    "diff": "torchkeep.comparing",
    "ConvertReport": "torchkeep.converting",
    "convert": "torchkeep.converting",
    "Exported": "torchkeep.exporting",
    "export": "torchkeep.exporting",
    "Inspection": "torchkeep.identify",
    "Integrity": "torchkeep.identify",
    "inspect": "torchkeep.identify",
    "verify": "torchkeep.identify",
    "Scanned": "torchkeep.identify.scan",
    "scan": "torchkeep.identify.scan",
    "Limits": "torchkeep.pickles.limits",
    "ClassNames": "torchkeep.loading",
    "LoadPlan": "torchkeep.loading",
    "LoadReport": "torchkeep.loading",
    "load": "torchkeep.loading",
    "load_into": "torchkeep.loading",
    "load_model": "torchkeep.loading",
    "plan": "torchkeep.loading",
    "TensorFile": "torchkeep.loading",
    "open": "torchkeep.loading",
    "RescueReport": "torchkeep.rescuing",
    "rescue": "torchkeep.rescuing",
    "Replay": "torchkeep.loading",
    "replay": "torchkeep.loading",
    "evaluating": "torchkeep.modes",
    "SaveReport": "torchkeep.saving",
    "save": "torchkeep.saving",
}
"""Where each public name lives."""

__all__ = [
    "Checkpointer",
    "ClassNames",
    "ConvertReport",
    "Difference",
    "Exported",
    "Inspection",
    "Integrity",
    "Limits",
    "LoadPlan",
    "LoadReport",
    "Replay",
    "RescueReport",
    "SaveReport",
    "Scanned",
    "TensorFile",
    "TorchkeepError",
    "__version__",
    "capture",
    "convert",
    "diff",
    "evaluating",
    "export",
    "inspect",
    "load",
    "load_into",
    "load_model",
    "open",
    "plan",
    "replay",
    "rescue",
    "restore",
    "save",
    "scan",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'torchkeep' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # Python's own class, so that `except ImportError` around an import does what it says.
        missing = MissingExtra.for_modules(f"torchkeep.{name}", ["torch"], "torch")
        raise ModuleNotFoundError(str(missing), name="torch") from None


def __dir__() -> list[str]:
    return sorted(__all__)
