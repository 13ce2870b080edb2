"""The example without PyTorch says what `torchkeep predict` says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporting.samples import classifier, images
from torchkeep.exporting import export, open_subject, taking_pixels
from torchkeep.training.classifier import load_classifier
from torchkeep.training.prediction import predict

EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.py"

# Python code for a child process: from here on, none of these can be imported.
_BLOCKED = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "torchkeep", "timm"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("pixels", [False, True])
def test_it_needs_no_pytorch_and_gives_the_same_answers(pixels: bool, tmp_path: Path) -> None:
    file, data = classifier(tmp_path), images(tmp_path / "data")
    subject = open_subject(file)
    path = tmp_path / "net.onnx"
    export(taking_pixels(subject) if pixels else subject, path, data=data)
    pictures = sorted(data.glob("*/*.png"))
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED, str(EXAMPLE), str(path), *map(str, pictures)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    model, card = load_classifier(file)
    expected = [
        f"{each.path}: {each.classes[0]} {each.probabilities[0]:.1%}"
        for each in predict(model, card, pictures, top=1)
    ]
    assert done.stdout.splitlines() == expected
