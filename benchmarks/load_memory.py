"""How much memory a load takes, beside torch and safetensors; a Markdown table.

    python benchmarks/load_memory.py [--mib 512]

Each load has a process of its own. A number is the peak of its resident memory (VmHWM) from the
load's start on, less what the process had before the model was made, in multiples of the model. So
1 is the least that is possible: the model alone. Pages of a mapped file count, although the
system could take them back. "Copy" is into a model that has its memory, "assign" into one on meta.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from save_load import Equal, machine, markdown, stored, ways_to_load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="size of the model")
    parser.add_argument("--folder", type=Path, help="where to write; a real disk, not tmpfs")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, assign, files = args.child
        print(peak(args.mib, name, assign == "assign", json.loads(files)))
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model = Equal(args.mib // 4)
        files = stored(model.state_dict(), Path(folder))
        body = [
            [name, *(in_child(args.mib, name, how, files) for how in ("copy", "assign"))]
            for name in ways_to_load(model, files, assign=True)
        ]
    print(markdown([f"Peak memory of a load, {args.mib} MiB = 1", "copy", "assign"], body))


def in_child(mib: int, name: str, how: str, files: dict[str, Path]) -> str:
    if how == "copy" and name not in ways_to_load(Equal(1), files, assign=False):
        return ""
    texts = json.dumps({writer: str(path) for writer, path in files.items()})
    command = [sys.executable, __file__, "--mib", str(mib), "--child", name, how, texts]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{float(child.stdout):.2f}"


def peak(mib: int, name: str, assign: bool, files: dict[str, str]) -> float:
    paths = {writer: Path(path) for writer, path in files.items()}
    warm_up(name, assign)
    before = resident("VmRSS")
    with torch.device("meta" if assign else "cpu"):
        model = Equal(mib // 4)
    load = ways_to_load(model, paths, assign=assign)[name]
    reset_peak()
    load()
    return (resident("VmHWM") - before) / (mib << 20)


def warm_up(name: str, assign: bool) -> None:
    """Load a small model, so that what is imported on first use is there."""
    model = Equal(1)
    with tempfile.TemporaryDirectory() as folder:
        files = stored(model.state_dict(), Path(folder))
        ways_to_load(model, files, assign=assign)[name]()


def reset_peak() -> None:
    """Have VmHWM start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise SystemExit("this needs Linux's /proc")


if __name__ == "__main__":
    main()
