"""The benchmark of the stall runs, and measures something for everybody who takes part."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "checkpoint_stall.py"


def test_every_contestant_has_its_row(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--models", "small", "--folder", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("torch.save", "safetensors.save_file", "DCP save", "torchkeep"):
        (row,) = re.findall(rf"^\| {re.escape(name)} +\|(.*)\|$", done.stdout, re.MULTILINE)
        assert len(re.findall(r"-?\d+\.\d \(-?\d+\.\d\d\)", row)) == 3
    assert list(tmp_path.iterdir()) == []
