"""What a load takes at its peak, besides the model itself: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchkeep.saving import save

MODEL_NBYTES = 256 << 20

CHILD = """
import json, sys
import torch
from torchkeep.loading import load_into


def net():
    parts = [torch.nn.Linear(1024, 1024, bias=False) for _ in range(62)]
    return torch.nn.Sequential(*parts, torch.nn.Linear(2048, 1024, bias=False))


def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


path, kind = sys.argv[1:]
with torch.device("meta" if kind != "copy" else "cpu"):
    model = net()
small = torch.nn.Linear(2, 2)
torch.save(small.state_dict(), path + ".small")
load_into(small, path + ".small")  # what is imported and set up once is no part of it
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
load_into(model, path, assign=kind != "copy", mmap=kind == "map")
print(json.dumps(status("VmHWM") - before))
"""


@pytest.fixture(scope="module", params=["model.safetensors", "model.pth", "theirs.pth"])
def file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("memory") / request.param
    state = {f"{n}.weight": torch.full((1024, 1024), float(n)) for n in range(62)}
    state["62.weight"] = torch.ones(1024, 2048)
    torch.save(state, path) if path.stem == "theirs" else save(state, path, durable=False)
    return path


@pytest.mark.parametrize(("kind", "models"), [("copy", 0.0), ("assign", 1.0), ("map", 1.0)])
def test_the_peak_is_the_model_and_five_percent_at_the_most(
    file: Path, kind: str, models: float
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux lets a process measure its peak anew")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file), kind], capture_output=True, text=True, check=True
    )
    peak = json.loads(done.stdout)
    assert peak < (models + 0.05) * MODEL_NBYTES
