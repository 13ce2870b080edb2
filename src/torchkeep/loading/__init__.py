"""Files to live models and values: nothing in a file runs, and what was loaded is proven."""

from torchkeep.loading.into import load_into
from torchkeep.loading.lazy import TensorFile, open
from torchkeep.loading.replay import Replay, replay
from torchkeep.loading.report import Loaded, LoadReport
from torchkeep.loading.trees import load

__all__ = [
    "LoadReport",
    "Loaded",
    "Replay",
    "TensorFile",
    "load",
    "load_into",
    "open",
    "replay",
]
