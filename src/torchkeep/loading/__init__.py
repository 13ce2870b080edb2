"""Files to live models and values: nothing in a file runs, and what was loaded is proven."""

from torchkeep.loading.into import load_into, plan
from torchkeep.loading.lazy import TensorFile, open
from torchkeep.loading.replay import Replay, replay
from torchkeep.loading.report import LoadReport
from torchkeep.loading.trees import load
from torchkeep.loading.whole import load_model
from torchkeep.matching.adaptations import ClassNames
from torchkeep.matching.plan import LoadPlan

__all__ = [
    "ClassNames",
    "LoadPlan",
    "LoadReport",
    "Replay",
    "TensorFile",
    "load",
    "load_into",
    "load_model",
    "open",
    "plan",
    "replay",
]
