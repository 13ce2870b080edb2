"""A training run as one HTML page that needs nothing else: no network, no script, no server.

Plain data goes in (`RunReport`), a file comes out (`write_report`). Nothing here imports torch.
"""

from torchkeep.report.data import (
    Best,
    Confusion,
    Deployment,
    Facts,
    Finding,
    LayerRow,
    Mistake,
    RunReport,
)
from torchkeep.report.deployments import add_deployments
from torchkeep.report.figures import ClassFigures, Pair, class_figures, confused_pairs
from torchkeep.report.page import render_report, write_report

__all__ = [
    "Best",
    "ClassFigures",
    "Confusion",
    "Deployment",
    "Facts",
    "Finding",
    "LayerRow",
    "Mistake",
    "Pair",
    "RunReport",
    "add_deployments",
    "class_figures",
    "confused_pairs",
    "render_report",
    "write_report",
]
