"""Files to live models and values: nothing in a file runs, and what was loaded is proven."""

from torchkeep.loading.into import load_into
from torchkeep.loading.lazy import TensorFile, open
from torchkeep.loading.report import Loaded, LoadReport
from torchkeep.loading.trees import load
from torchkeep.loading.whole import load_model

__all__ = ["LoadReport", "Loaded", "TensorFile", "load", "load_into", "load_model", "open"]
