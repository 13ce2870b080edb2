"""How the cost of a save and of a load grows with bytes and with tensors; two Markdown tables.

    python benchmarks/scaling.py                     up to 1 GB, and up to 10,000 tensors
    python benchmarks/scaling.py --full              up to 10 GB, and up to 100,000 tensors
    python benchmarks/scaling.py --sizes 10 1000     in MB
    python benchmarks/scaling.py --tensors 10 1000

The first table has seconds per GB of durable saves and cold loads, in tensors of 4 MB; the second
microseconds per tensor of 4 KB, of saves to the page cache and warm loads. Loads are into the
model's memory. The cost is linear if a row's numbers are the same. Each is a median, taken as in
save_load.py.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from save_load import Equal, loads, machine, markdown, saves, stored, take_turns

MEGA = 1_000_000
SIZES_MB = (10, 100, 1_000, 10_000)
NUMBERS = (10, 100, 1_000, 10_000, 100_000)
SAVES = ("torch.save", "safetensors.save_file", "torchkeep .safetensors", "torchkeep .pth")
LOADS = ("torch.load, mmap", "torchkeep .safetensors", "torchkeep .pth")
"""Who takes part, by the names of save_load.py."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What each contestant took."""

    number: int
    """How many tensors there were."""
    seconds: dict[str, float]
    """The seconds of each, by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", metavar="MB")
    parser.add_argument("--tensors", type=int, nargs="*", metavar="NUMBER")
    parser.add_argument("--full", action="store_true", help="the largest ones, too")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; 40 GB for the largest")
    args = parser.parse_args()
    both = args.sizes is None and args.tensors is None
    sizes = args.sizes or (SIZES_MB if args.full else SIZES_MB[:-1]) * both
    numbers = args.tensors or (NUMBERS if args.full else NUMBERS[:-1]) * both
    print(machine(f"{args.rounds} rounds"))
    if sizes:
        columns = {f"{mb:,} MB": costs(mb // 4 or 1, MEGA, args, disk=True) for mb in sizes}
        print(table("Seconds per GB", columns, per=lambda number: number * MEGA * 4 / 1e9))
    if numbers:
        columns = {f"{number:,}": costs(number, 1000, args, disk=False) for number in numbers}
        print(table("Microseconds per tensor", columns, per=lambda number: number / 1e6))
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")


def costs(number: int, numel: int, args: argparse.Namespace, *, disk: bool) -> Costs:
    """Return the seconds of each contestant, for that many tensors of that many elements."""
    model = Equal(number, numel)
    state = model.state_dict()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        acts, prepare = saves(state, Path(folder), durable=disk, over=False)
        saved = take_turns({name: acts[name] for name in SAVES}, prepare, args.rounds)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        acts, prepare = loads(model, stored(state, Path(folder)), assign=False, cold=disk)
        loaded = take_turns({name: acts[name] for name in LOADS}, prepare, args.rounds)
    seconds = {f"save: {name}": value for name, value in saved.items()}
    return Costs(number, seconds | {f"load: {name}": value for name, value in loaded.items()})


def table(title: str, columns: dict[str, Costs], per: Callable[[int], float]) -> str:
    names = next(iter(columns.values())).seconds
    body = [
        [name, *(f"{cost.seconds[name] / per(cost.number):.3g}" for cost in columns.values())]
        for name in names
    ]
    return markdown([title, *columns], body)


if __name__ == "__main__":
    main()
