"""torchmetrics: metrics whole, their states, and collections in a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
)

from frameworks.expected import expecting
from frameworks.networks import SmallNet


def write(folder: Path) -> None:
    metrics = {
        "accuracy": MulticlassAccuracy(3),
        "auroc": MulticlassAUROC(3),
        "confusion": MulticlassConfusionMatrix(3),
        "mean": MeanMetric(),
    }
    for name, metric in metrics.items():
        metric.persistent(True)
        if name == "mean":
            metric.update(torch.tensor([1.0, 2.0]))
        else:
            metric.update(torch.eye(3), torch.arange(3))
        cls = f"{type(metric).__module__}.{type(metric).__name__}"
        torch.save(metric, expecting(folder / f"{name}_whole.pt", role="module", classes=[cls]))
        path = expecting(
            folder / f"{name}.pt",
            role="checkpoint",
            framework=None,
        )
        torch.save({"model": SmallNet().state_dict(), "metric": metric.state_dict()}, path)
    collection = MetricCollection({"a": MulticlassAccuracy(3), "b": MulticlassConfusionMatrix(3)})
    collection.persistent(True)
    torch.save(collection, expecting(folder / "collection_whole.pt", role="module"))
    path = expecting(
        folder / "collection.pt",
        role="checkpoint",
        state_dicts={"model": "model", "metrics": "other"},
    )
    torch.save({"model": SmallNet().state_dict(), "metrics": collection.state_dict()}, path)
