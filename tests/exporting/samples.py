"""Small networks, and a sample for each target of the shared suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchkeep.exporting import Onnx, OpenVino, Pt2, Target, TorchScript
from torchkeep.exporting.targets import Program
from torchkeep.networks import build
from torchkeep.training.classifier import Card, save_classifier
from torchkeep.training.data.preprocessing import Preprocessing

TARGETS: Sequence[Target] = (
    Onnx(),
    Onnx(external_data=True),
    Pt2(),
    TorchScript(),
    TorchScript(by="script", optimize=True),
    TorchScript(by="script", lite=True),
    OpenVino(),
)
"""Each target but ExecuTorch, with the options that make other files of it."""

CLASSES = ("cat", "dog", "owl")
RECIPE = Preprocessing(24, 24, 28, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic")


@dataclass(frozen=True, slots=True)
class Faulty:
    """A target that writes something else than it was told."""

    real: Target
    before: Callable[[Program], Program] = lambda program: program
    after: Callable[[Path], object] = lambda _: None
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    @property
    def name(self) -> str:
        return self.real.name

    @property
    def modules(self) -> tuple[str, ...]:
        return self.real.modules

    @property
    def extra(self) -> str:
        return self.real.extra

    @property
    def beside(self) -> tuple[str, ...]:
        return self.real.beside

    @property
    def precision(self) -> str:
        return self.real.precision

    def write(self, program: Program, path: Path) -> None:
        self.real.write(self.before(program), path)
        self.after(path)


class Net(nn.Module):
    """Has what goes wrong in exports: BatchNorm with statistics of its own, and Dropout."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(self.dropout(x.mean((2, 3))))


def net(seed: int = 0) -> nn.Module:
    """Return such a network whose statistics are not those of any batch."""
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        made.bn.running_mean.uniform_(-0.5, 0.5)
        made.bn.running_var.uniform_(0.5, 2)
    return made.eval()


def inputs(rows: int = 9) -> torch.Tensor:
    """Return images as tensors."""
    return torch.randn(rows, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def classifier(folder: Path, name: str = "best.safetensors") -> Path:
    """Write a classifier as `torchkeep train` does, and return its file."""
    torch.manual_seed(0)
    model = build("timm/test_resnet", num_classes=len(CLASSES))
    path = folder / name
    save_classifier(model, Card("timm/test_resnet", CLASSES, RECIPE), path)
    return path


def run_folder(folder: Path) -> Path:
    """Write a run with a classifier, as far as an export looks at it, and return its folder."""
    run = folder / "run"
    run.mkdir()
    classifier(run)
    (run / "settings.json").write_text("{}")
    return run


def program(
    model: nn.Module, rows: torch.Tensor, outputs: tuple[str, ...] = ("output",), **how: Any
) -> Program:
    """Return a network of one input whose batch may vary, with all rows to calibrate with."""
    usual: dict[str, Any] = {"dynamic": ({0: "batch"},), "metadata": {}}
    usual["calibration"] = [(row[None],) for row in rows]
    return Program(model.eval(), (rows[:2],), ("x",), outputs, **usual | how)


def images(folder: Path, per_class: int = 5) -> Path:
    """Write pictures of several sizes, a folder per class, and return the folder."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for at in range(per_class):
            pixels = random.integers(0, 256, (30 + 7 * at, 41, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{at}.png")
    return folder
