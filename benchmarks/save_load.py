"""Save and load beside torch and safetensors, in one process and in turns; Markdown tables.

    python benchmarks/save_load.py           a ResNet50's state and 256 MiB: three minutes
    python benchmarks/save_load.py --full    the same and 1 GiB, more rounds

A number is the median of the rounds, whose order is drawn anew each time; the first round warms up
and does not count. In brackets: how many times as fast as the first row.

Each contestant saves to a file of its own. Before each save what is dirty is synced and the disk
is left alone for a moment: it is still busy with freeing what was deleted. "New" means that no file
was there; "over" that the contestant's last one was. Durable is with fsync.

A load ends with reading each page of the model once, so that a map that was not read yet counts as
well. "Cold" means that the file's pages were dropped with posix_fadvise(DONTNEED), which is
checked; the models that a map had been assigned to have let go of it before.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
import torchvision

from torchkeep.loading import load_into
from torchkeep.saving import save
from torchkeep.tensors import bytes_of

Act = Callable[[], object]
State = dict[str, torch.Tensor]

SETTLE_S = 0.15
"""How long the disk is left alone before a save."""


class Flat(torch.nn.Module):
    """A model of some mebibytes: 4 of them, of float32, per parameter."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        parts = [torch.nn.Parameter(torch.randn(1024, 1024)) for _ in range(mib // 4)]
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
    compare("ResNet50", torchvision.models.resnet50(weights=None), args.folder, rounds)
    for mib in sizes:
        compare(f"{mib} MiB", Flat(mib), args.folder, rounds)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")


def compare(name: str, model: torch.nn.Module, parent: Path | None, rounds: int) -> None:
    state = model.state_dict()
    nbytes = sum(value.nbytes for value in state.values())
    size = f"{name} ({len(state)} tensors, {nbytes / 2**20:.0f} MiB)"
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        columns = {
            f"{how}, {where}": saves(state, Path(folder), rounds, how == "durable", where == "over")
            for how in ("durable", "page cache")
            for where in ("new", "over")
        }
        print(table(f"Save {size}", columns))
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        files = stored(state, Path(folder))
        columns = {
            f"{how}, {heat}": loads(model, files, rounds, how == "assign", heat == "cold")
            for how in ("copy", "assign")
            for heat in ("warm", "cold")
        }
        print(table(f"Load {size}", columns))


# --- Saving ------------------------------------------------------------------------------------


def saves(state: State, folder: Path, rounds: int, durable: bool, over: bool) -> dict[str, float]:
    """Return the seconds of each way to save."""

    def theirs(name: str, write: Callable[[Path], object]) -> tuple[Path, Act]:
        path = folder / name
        return path, lambda: (write(path), durable and sync(path))

    def ours(name: str) -> tuple[Path, Act]:
        path = folder / name
        return path, lambda: save(state, path, durable=durable, overwrite=over)

    bare = write_direct if durable else write_plain
    ways = {
        "torch.save": theirs("torch.pth", lambda path: torch.save(state, path)),
        "safetensors.save_file": theirs(
            "theirs.safetensors", lambda path: safetensors.torch.save_file(state, path)
        ),
        "torchkeep .safetensors, digests": ours("ours.safetensors"),
        "torchkeep .pth, digests and CRCs": ours("ours.pth"),
        "the bytes, O_DIRECT or os.write": theirs("bare", lambda path: bare(state, path)),
    }

    def prepare(name: str) -> None:
        if not over:
            with suppress(FileNotFoundError):
                ways[name][0].unlink()
        os.sync()
        time.sleep(SETTLE_S)

    return take_turns({name: act for name, (_, act) in ways.items()}, rounds, prepare)


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
    model: torch.nn.Module, files: dict[str, Path], rounds: int, assign: bool, cold: bool
) -> dict[str, float]:
    """Return the seconds of each way to load into the model."""
    own = {name: value.clone() for name, value in model.state_dict().items()}

    def theirs(read: Callable[[], State]) -> Act:
        return lambda: (model.load_state_dict(read(), assign=assign), touch(model))

    def ours(writer: str, *, mmap: bool = False) -> Act:
        return lambda: (
            load_into(model, files[writer], assign=assign, mmap=mmap),
            touch(model),
        )

    pth, tensors = files["torch"], files["safetensors"]
    ways = {
        "torch.load": theirs(lambda: torch.load(pth)),
        "torch.load, mmap": theirs(lambda: torch.load(pth, mmap=True)),
        "safetensors.load_file": theirs(lambda: safetensors.torch.load_file(tensors)),
        "torchkeep .pth, proven": ours("torch"),
        "torchkeep .safetensors, proven": ours("safetensors"),
        "torchkeep, its own file, digests, proven": ours("torchkeep"),
    }
    if assign:
        ways["torchkeep .pth, mmap, proven"] = ours("torch", mmap=True)
        ways["torchkeep .safetensors, mmap, proven"] = ours("safetensors", mmap=True)

    def prepare(_: str) -> None:
        model.load_state_dict(own, assign=True)  # lets go of a map
        for path in files.values():
            (drop if cold else warm)(path)

    return take_turns(ways, rounds, prepare)


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
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    nbytes = os.fstat(fd).st_size
    if any(is_cached(fd, nbytes * part // 16) for part in range(16)):
        raise SystemExit(f"{path}: its pages stay in memory; choose a --folder on a disk")
    os.close(fd)


def is_cached(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False


# --- Measuring and printing --------------------------------------------------------------------


def take_turns(
    acts: dict[str, Act], rounds: int, prepare: Callable[[str], object]
) -> dict[str, float]:
    """Return the median seconds of each act, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    order = random.Random(0)
    for _ in range(rounds + 1):
        for name in order.sample(list(acts), len(acts)):
            prepare(name)
            start = time.perf_counter()
            acts[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def table(title: str, columns: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of seconds: a column per way, a row per contestant."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[title, *columns], ["---", *("---:" for _ in columns)]]
    rows += [[name, *(_cell(column, name) for column in columns.values())] for name in names]
    return "\n" + aligned(rows)


def _cell(column: dict[str, float], name: str) -> str:
    if name not in column:
        return ""
    first = next(iter(column.values()))
    return f"{column[name]:.3f} s ({first / column[name]:.2f})"


def aligned(rows: Iterable[list[str]]) -> str:
    """Return a Markdown table of these cells, in columns of even width."""
    rows = list(rows)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        if row[0] == "---":
            return "-" * widths[0] + " | " + " | ".join("-" * (w - 1) + ":" for w in widths[1:])
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return " | ".join([row[0].ljust(widths[0]), *numbers])

    return "\n".join(f"| {line(row)} |" for row in rows)


def machine(*notes: str) -> str:
    """Return a sentence that names the machine and the versions."""
    facts = [
        _processor(),
        f"{os.cpu_count()} cores",
        f"Linux {platform.release().split('-')[0]}"
        if platform.system() == "Linux"
        else platform.platform(terse=True),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"safetensors {safetensors.__version__}",
        f"load average {os.getloadavg()[0]:.1f}",
        *notes,
    ]
    return ", ".join(facts)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
