"""What it takes to make one file of a sharded checkpoint, beside PyTorch's ways; a Markdown table.

    python benchmarks/consolidating.py                 1,000 MiB that two ranks have saved
    python benchmarks/consolidating.py --ranks 4 --mb 4000

The state is that of `distributed.py`, under FSDP2: saved by torchkeep, by DCP, and by DCP's writer
of safetensors shards. Of torchkeep's own, one file has the model, which is a third of it; the
others have all. Each contestant has a process of its own and writes to the same disk; only
torchkeep proves and syncs what it has written. Memory is the peak of what is resident, less what
was there before (VmHWM). Pages of files that are mapped count, although the system could take them
back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Contest, torchrun
from load_memory import reset_peak, resident
from save_load import machine, markdown

WAYS = {
    "torchkeep convert": "own",
    "torchkeep convert, of DCP's": "dcp",
    "torchkeep convert, of HF shards": "shards",
    "dcp_to_torch_save": "dcp",
    "consolidate_safetensors_files": "shards",
}
"""Who makes one file, and of what."""


def way(name: str) -> Callable[[Path, Path], Any]:
    """Return what makes one file of a folder; everything that it needs is imported."""
    if name.startswith("torchkeep"):
        from torchkeep import convert

        return lambda folder, target: convert(folder, target.with_suffix(".safetensors"))
    if name == "dcp_to_torch_save":
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        return lambda folder, target: dcp_to_torch_save(folder, target.with_suffix(".pth"))
    from torch.distributed.checkpoint._consolidate_hf_safetensors import (
        consolidate_safetensors_files,
    )

    def consolidate(folder: Path, target: Path) -> None:
        target.mkdir()
        names = {name for item in map(header, folder.glob("*.safetensors")) for name in item}
        consolidate_safetensors_files(str(folder), str(target), dict.fromkeys(names, 1))

    return consolidate


def header(path: Path) -> dict[str, Any]:
    """Return the header of a file of safetensors, but for its metadata."""
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little"))
    found: dict[str, Any] = json.loads(text)
    found.pop("__metadata__", None)
    return found


def write(folder: Path, mb: int) -> None:
    """Save a state as one of several ranks: a folder for each format."""
    from torch import distributed

    distributed.init_process_group("gloo")
    contest = Contest("fsdp", mb << 20, folder)
    contest.save(folder / "own")
    contest.contestants()["DCP"][0](folder / "dcp")
    contest.save_shards(folder / "shards")
    distributed.destroy_process_group()


def measured(name: str, folder: Path) -> tuple[float, float, float]:
    """Return the seconds, the MiB of memory and the MiB of the file that making it takes."""
    warnings.simplefilter("ignore")
    do = way(name)
    with tempfile.TemporaryDirectory(dir=folder) as target:
        before = resident("VmRSS")
        reset_peak()
        begun = time.perf_counter()
        do(folder / WAYS[name], Path(target, "one"))
        seconds, memory = time.perf_counter() - begun, resident("VmHWM") - before
        size = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
        return seconds, memory / 2**20, size / 2**20


def in_child(name: str, folder: Path) -> tuple[float, float, float]:
    command = [sys.executable, __file__, "--folder", str(folder), "--way", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    seconds, memory, size = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mb", type=int, default=1000, help="size of the state in MiB")
    parser.add_argument("--dir", help="where to write")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options.folder)))
        return
    if options.folder:
        write(options.folder, options.mb)
        return
    print(f"{machine()}; {options.mb} MiB by {options.ranks} ranks\n")
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        torchrun(__file__, options.ranks, "--folder", folder, "--mb", str(options.mb))
        found = {name: in_child(name, Path(folder)) for name in WAYS}
    seconds, _, size = found["torchkeep convert"]
    first = seconds / size
    rows = [
        [name, f"{size:,.0f}", f"{seconds / size / first:.2f}", f"{memory:,.0f}"]
        for name, (seconds, memory, size) in found.items()
    ]
    print(markdown(["One file of shards", "MiB", "time of a MiB", "memory, MiB"], rows))


if __name__ == "__main__":
    main()
