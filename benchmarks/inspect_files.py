"""What looking into a file costs: a whole process from cold, beside torch; large and hostile files.

    python benchmarks/inspect_files.py [-n ROUNDS] [--dir FOLDER]

Three tables. The first compares `torchkeep inspect --json` with a script that imports torch and
calls `torch.load(mmap=True)`, each as a fresh process, in turns, on a ResNet50 checkpoint with its
AdamW. The second inspects files of 10 MB and of 100 GB (sparse) of each container. The third
inspects hostile files of at most 10 KB and prints the time and the peak of memory.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torchvision.models import resnet50

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from formats.building import legacy_file, legacy_tensor, safetensors_file

INSPECT = [sys.executable, "-m", "torchkeep", "inspect", "--json"]
LOAD = [
    sys.executable,
    "-c",
    "import sys, torch; torch.load(sys.argv[1], mmap=True, map_location='cpu')",
]
IMPORT = [sys.executable, "-c", "import torch"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""An installed package has its bytecode, as torch has here; a fresh clone writes it now."""
SMALL, LARGE = 10 * 10**6, 100 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=9, help="rounds")
    parser.add_argument("--dir", type=Path, help="where the files go; 100 GB sparse")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        cold_start(Path(folder), options.n)
        sizes(Path(folder), options.n)
        hostile(Path(folder))


def cold_start(folder: Path, rounds: int) -> None:
    path = folder / "resnet50.pth"
    model = resnet50()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(checkpoint, path)
    commands = {
        "torchkeep inspect --json": [*INSPECT, str(path)],
        "torch.load(mmap=True)": [*LOAD, str(path)],
        "import torch": IMPORT,
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        seconds(command)  # the first one reads the programs from the disk
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))
    base = statistics.median(times["torchkeep inspect --json"])
    print(f"ResNet50 and AdamW, {path.stat().st_size / 1e6:.0f} MB; whole process, {rounds} rounds")
    for name, found in times.items():
        middle = statistics.median(found)
        ratio = f"{middle / base:5.1f} x"
        print(f"  {name:26} median {middle:6.3f} s  best {min(found):6.3f} s  {ratio}")


def sizes(folder: Path, rounds: int) -> None:
    print(f"\nThe same time for {SMALL / 1e6:.0f} MB and {LARGE / 1e9:.0f} GB (sparse)")
    for name, write in (("torch-zip", big_zip), ("torch-legacy", big_legacy), ("safetensors", big)):
        paths = [folder / f"{name}-{nbytes}" for nbytes in (SMALL, LARGE)]
        for path, nbytes in zip(paths, (SMALL, LARGE), strict=True):
            write(path, nbytes // 4)
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for found, path in zip(times, paths, strict=True):
                found.append(seconds([*INSPECT, str(path)]))
        one, other = map(statistics.median, times)
        read = [nbytes_read(path) for path in paths]
        print(
            f"  {name:14} {one:6.3f} s and {other:6.3f} s: {other / one:4.2f} x; "
            f"{read[0]:,} and {read[1]:,} bytes read"
        )
        for path in paths:
            path.unlink()


def big_zip(path: Path, numel: int) -> None:
    memory = path.with_suffix(".memory")  # a sparse file takes the place of 100 GB of memory
    memory.touch()
    os.truncate(memory, 4 * numel)
    tensor = torch.from_file(str(memory), shared=True, size=numel)
    with torch.serialization.skip_data():
        torch.save({"layer.weight": tensor}, path)
    memory.unlink()


def big_legacy(path: Path, numel: int) -> None:
    legacy_file(path, legacy_tensor(numel), {"1": (4, b"")})
    head = path.read_bytes()[:-8] + numel.to_bytes(8, "little")
    path.write_bytes(head)
    os.truncate(path, len(head) + 4 * numel)


def big(path: Path, numel: int) -> None:
    row = {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}
    safetensors_file(path, {"layer.weight": row})
    os.truncate(path, path.stat().st_size + 4 * numel)


def nbytes_read(path: Path) -> int:
    """Return how many bytes of the file `inspect` reads."""
    from torchkeep.files import InputFile
    from torchkeep.identify import inspect

    total = 0
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        nonlocal total
        total += nbytes
        return read_at(self, offset, nbytes)

    InputFile.read_at = counting  # type: ignore[method-assign]
    try:
        inspect(path)
    finally:
        InputFile.read_at = read_at  # type: ignore[method-assign]
    return total


def hostile(folder: Path) -> None:
    print("\nHostile files of at most 10 KB: time and peak of memory of the whole process")
    for name, data in bombs().items():
        path = folder / "bomb"
        path.write_bytes(data)
        assert len(data) <= 10_240, name
        start = time.perf_counter()
        peak, code = peak_mb([*INSPECT, str(path)])
        elapsed = time.perf_counter() - start
        print(f"  {name:28} {len(data):6,} bytes  {elapsed:6.3f} s  {peak:5.0f} MB  exit {code}")


def bombs() -> dict[str, bytes]:
    """Return pickles and others that ask for much more than they have."""
    doubling = b"]\x94" + b"".join(b"]\x94(h%ch%ce" % (i, i) for i in range(100))
    nested = b"\x80\x04" + b"(" * 5000 + b"t" * 5000 + b"."
    keys = (
        b"\x80\x02}("
        + b"".join(
            b"\x8a\x09" + ((i << 61) - i).to_bytes(9, "little", signed=True) + b"K\x00"
            for i in range(1, 700)
        )
        + b"u."
    )
    return {
        "lists of lists, doubled": b"\x80\x04" + doubling + b".",
        "tuples in tuples": nested,
        "colliding integer keys": keys,
        "an integer of 8 KB": b"\x80\x02\x8b\x40\x1f\0\0" + b"\x7f" * 8000 + b".",
        "a text of 1 TB": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x" * 100,
        "copies of a text": copies(),
        "JSON nested in JSON": len(b"[" * 9000).to_bytes(8, "little") + b'{"a":' + b"[" * 8995,
        "a tensor of 2**62 elements": legacy_bomb(),
    }


def copies() -> bytes:
    """Return a pickle that asks for a copy of a text in six bytes, again and again."""
    text = pickle.dumps("x" * 4000, 2)[:-1]
    call = b"h\x01h\x00\x85R0"
    return text[:2] + text[2:] + b"q\x000c_codecs\nencode\nq\x010" + call * 800 + b"N."


def legacy_bomb() -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        legacy_file(Path(file.name), legacy_tensor(1 << 60), {"1": (4, b"")})
        return Path(file.name).read_bytes()


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - start


PEAK = """
import os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)
"""
"""Run in a small process: a child inherits the peak of the process that it was forked from."""


def peak_mb(command: list[str]) -> tuple[float, int]:
    """Return a command's peak of resident memory in MB, and its exit code."""
    watcher = [sys.executable, "-c", PEAK, *command]
    done = subprocess.run(watcher, capture_output=True, text=True, check=True)
    peak, code = map(int, done.stdout.split())
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6, code


if __name__ == "__main__":
    main()
