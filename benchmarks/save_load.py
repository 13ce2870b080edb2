"""Save and load beside torch and safetensors, in one process and in turns; Markdown tables.

    python benchmarks/save_load.py           a ResNet50's state and 256 MiB: three minutes
    python benchmarks/save_load.py --full    the same and 1 GiB, more rounds

A number is the median in seconds of the rounds, whose order is drawn anew each time; the first one
warms up and does not count. In brackets: how many times as fast as the first row.

Saving: torchkeep computes digests, and CRCs for `.pth`. "Durable" is with fsync. "New" means that
no file was there, "over" that the contestant's last one was. The last row is as many bytes and
nothing else: one O_DIRECT writer where it is durable, os.write where not. Before each save what is
dirty is synced, and the disk is left alone for a moment: it goes on freeing what was deleted.

Loading: torchkeep proves what it loaded, and with its own file compares the digests, too. "Copy" is
into the model's memory, "assign" gives the model other tensors. A load ends with reading each page
of the model once, so that a map that was not read yet counts as well. "Cold" means that the file's
pages were dropped with posix_fadvise(DONTNEED), which is checked; a model that a map was assigned
to let go of it before.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import mmap
import os
import platform
import random
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch

from torchkeep.loading import load_into
from torchkeep.saving import save
from torchkeep.tensors import bytes_of

Act = Callable[[], object]
Acts = dict[str, Act]
Prepare = Callable[[], None]
State = dict[str, torch.Tensor]

SETTLE_S = 0.15
"""How long the disk is left alone before a save."""


class Equal(torch.nn.Module):
    """A model of equal parameters of float32."""

    def __init__(self, number: int, numel: int = 1 << 20) -> None:
        super().__init__()
        parts = [torch.nn.Parameter(torch.empty(numel).uniform_()) for _ in range(number)]
        self.parts = torch.nn.ParameterList(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, nargs="*", help="sizes of the large models")
    parser.add_argument("-n", "--rounds", type=int, help="rounds (7; with --full 11)")
    parser.add_argument("--full", action="store_true", help="1 GiB, too, and more rounds")
    parser.add_argument("--folder", type=Path, help="where to write; a real disk, not tmpfs")
    args = parser.parse_args()
    rounds = args.rounds or (11 if args.full else 7)
    sizes = args.mib if args.mib is not None else [256, 1024] if args.full else [256]
    print(machine(f"{rounds} rounds"))
    import torchvision  # here, since the other benchmarks' processes need it not

    compare("ResNet50", torchvision.models.resnet50(weights=None), args.folder, rounds)
    for mib in sizes:
        compare(f"{mib // 4} tensors", Equal(mib // 4), args.folder, rounds)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")


def compare(name: str, model: torch.nn.Module, parent: Path | None, rounds: int) -> None:
    state = model.state_dict()
    nbytes = sum(value.nbytes for value in state.values())
    size = f"{name}, {nbytes / 2**20:.0f} MiB"
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        columns = {
            f"{how}, {where}": take_turns(
                *saves(state, Path(folder), durable=how == "durable", over=where == "over"), rounds
            )
            for how in ("durable", "page cache")
            for where in ("new", "over")
        }
        print(table(f"Save {size}", columns), flush=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        files = stored(state, Path(folder))
        columns = {
            f"{how}, {heat}": take_turns(
                *loads(model, files, assign=how == "assign", cold=heat == "cold"), rounds
            )
            for how in ("copy", "assign")
            for heat in ("warm", "cold")
        }
        print(table(f"Load {size}", columns), flush=True)


# --- Saving ------------------------------------------------------------------------------------


def saves(state: State, folder: Path, *, durable: bool, over: bool) -> tuple[Acts, Prepare]:
    """Return the ways to save, and what to do before each."""

    def theirs(write: Callable[[Path], object], path: Path) -> Act:
        return lambda: (write(path), durable and sync(path))

    def ours(path: Path) -> Act:
        return lambda: save(state, path, durable=durable, overwrite=over)

    def prepare() -> None:
        if not over:
            for path in folder.iterdir():
                path.unlink()
        os.sync()
        time.sleep(SETTLE_S)

    bare = write_direct if durable else write_plain
    acts = {
        "torch.save": theirs(lambda path: torch.save(state, path), folder / "theirs.pth"),
        "safetensors.save_file": theirs(
            lambda path: safetensors.torch.save_file(state, path), folder / "theirs.safetensors"
        ),
        "torchkeep .safetensors": ours(folder / "ours.safetensors"),
        "torchkeep .pth": ours(folder / "ours.pth"),
        "O_DIRECT or os.write": theirs(lambda path: bare(state, path), folder / "bare"),
    }
    return acts, prepare


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_plain(state: State, path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for value in state.values():
            file.write(bytes_of(value))


def write_direct(state: State, path: Path, nbytes: int = 4 << 20) -> None:
    """Write as many bytes as the state has from one aligned buffer, past the page cache."""
    total = sum(value.nbytes for value in state.values())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DIRECT", 0))
    with mmap.mmap(-1, nbytes) as buffer:
        for _ in range(-(-total // nbytes)):
            os.write(fd, buffer)
    os.fsync(fd)
    os.close(fd)


# --- Loading -----------------------------------------------------------------------------------


def stored(state: State, folder: Path) -> dict[str, Path]:
    """Return the files to load, by who wrote them."""
    files = {
        "torch": folder / "theirs.pth",
        "safetensors": folder / "theirs.safetensors",
        "torchkeep": folder / "ours.safetensors",
    }
    torch.save(state, files["torch"])
    safetensors.torch.save_file(state, files["safetensors"])
    save(state, files["torchkeep"])
    for path in files.values():
        sync(path)
    return files


def loads(
    model: torch.nn.Module, files: dict[str, Path], *, assign: bool, cold: bool
) -> tuple[Acts, Prepare]:
    """Return the ways to load into the model, and what to do before each."""
    own = {name: value.clone() for name, value in model.state_dict().items()} if assign else {}

    def prepare() -> None:
        if assign:
            model.load_state_dict(own, assign=True)  # it lets go of a map
        for path in files.values():
            (drop if cold else warm)(path)

    return ways_to_load(model, files, assign=assign), prepare


def ways_to_load(model: torch.nn.Module, files: dict[str, Path], *, assign: bool) -> Acts:
    def theirs(read: Callable[[], State]) -> Act:
        return lambda: (model.load_state_dict(read(), assign=assign), touch(model))

    def ours(writer: str, **options: bool) -> Act:
        return lambda: (load_into(model, files[writer], assign=assign, **options), touch(model))

    pth, tensors = files["torch"], files["safetensors"]
    acts = {
        "torch.load": theirs(lambda: torch.load(pth)),
        "torch.load, mmap": theirs(lambda: torch.load(pth, mmap=True)),
        "safetensors.load_file": theirs(lambda: safetensors.torch.load_file(tensors)),
        "torchkeep .pth": ours("torch"),
        "torchkeep .safetensors": ours("safetensors"),
        "torchkeep, own .safetensors": ours("torchkeep"),
    }
    if assign:
        acts["torchkeep .pth, mmap"] = ours("torch", mmap=True)
        acts["torchkeep .safetensors, mmap"] = ours("safetensors", mmap=True)
    return acts


def touch(model: torch.nn.Module) -> None:
    """Read a value of each page of memory."""
    for parameter in model.parameters():
        parameter.detach().flatten()[:: 4096 // parameter.element_size()].sum()


def warm(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(4 << 20):
            pass


def drop(path: Path) -> None:
    """Have the file's pages dropped from the page cache.

    Raises:
        SystemExit: they stayed.
    """
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_cached(file.fileno()):
            raise SystemExit(f"{path}: its pages stay in memory; choose a --folder on a disk")


def is_cached(fd: int) -> bool:
    """Whether any page of the file is in memory. To read one would bring in its neighbours."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as view:
        start = ctypes.c_char.from_buffer(view)
        pages = ctypes.create_string_buffer(-(-len(view) // mmap.PAGESIZE))
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), pages)
        del start  # else the map can't be closed
    return bool(failed) or any(pages.raw)


# --- Measuring and printing --------------------------------------------------------------------


def take_turns(acts: Acts, prepare: Prepare, rounds: int) -> dict[str, float]:
    """Return the median seconds of each act, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    order = random.Random(0)
    for _ in range(rounds + 1):
        for name in order.sample(list(acts), len(acts)):
            prepare()
            start = time.perf_counter()
            acts[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def table(title: str, columns: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of seconds: a column per way, a row per contestant."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    body = [[name, *(_cell(column, name) for column in columns.values())] for name in names]
    return markdown([title, *columns], body)


def _cell(column: dict[str, float], name: str) -> str:
    if name not in column:
        return ""
    first = next(iter(column.values()))
    return f"{column[name]:.3f} ({first / column[name]:.2f})"


def markdown(head: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table after an empty line: names to the left, numbers to the right."""
    first, *widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(name: str, cells: list[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join([name.ljust(first), *numbers])} |"

    rule = line("-" * first, ["-" * (width - 1) + ":" for width in widths])
    top, *lines = [line(row[0], row[1:]) for row in (head, *body)]
    return "\n".join(["", top, rule, *lines])


def machine(*notes: str) -> str:
    """Return lines that name the machine and the versions."""
    facts = [
        _processor(),
        f"{os.cpu_count()} cores",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"safetensors {safetensors.__version__}",
        "zlib-ng" if importlib.util.find_spec("zlib_ng") else "no zlib-ng",
        f"load average {os.getloadavg()[0]:.1f}",
        *notes,
    ]
    return textwrap.fill(", ".join(facts), 100)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
