"""Save and load against torch.save, torch.load and safetensors, side by side in one run.

    python benchmarks/save_load.py                    a ResNet50's state and 256 MiB
    python benchmarks/save_load.py --mib 1024 -n 7    1 GiB, seven repeats

Contestants take turns, so that a busy machine is busy for all; medians are compared. A ratio is
how many times as fast as PyTorch's own way. Every save starts with no file and an idle disk. Every
load ends with reading each parameter once, so that a map that was not read yet counts as well.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
import torchvision

from torchkeep.loading import load_into
from torchkeep.saving import save
from torchkeep.tensors import bytes_of

Contest = dict[str, Callable[[], object]]


class Flat(torch.nn.Module):
    """A model of a given size: 4 MiB of float32 per parameter."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        parts = [torch.nn.Parameter(torch.randn(1024, 1024)) for _ in range(mib // 4)]
        self.parts = torch.nn.ParameterList(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="size of the large model")
    parser.add_argument("-n", "--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a real disk, not tmpfs")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, safetensors {safetensors.__version__}"
    )
    models = {
        "ResNet50": lambda: torchvision.models.resnet50(weights=None),
        f"{args.mib} MiB": lambda: Flat(args.mib),
    }
    for name, make in models.items():
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            compare(name, make, Path(folder), args.repeats)


def compare(name: str, make: Callable[[], torch.nn.Module], folder: Path, repeats: int) -> None:
    model = make()
    state = model.state_dict()
    nbytes = sum(value.nbytes for value in state.values())
    title = f"{name}: {len(state)} tensors, {nbytes / 2**20:.0f} MiB"
    path = folder / "file"
    for what, contest in (
        ("save, durable", saves(state, path, durable=True)),
        ("save, page cache", saves(state, path, durable=False)),
    ):
        report(f"{title}: {what}", run(contest, repeats, lambda: clear(path)), nbytes)
    clear(path)
    other = make()
    contest = loads(state, other, folder)
    report(f"{title}: load into the model, warm", run(contest, repeats, lambda: None), nbytes)


# --- Contestants -------------------------------------------------------------------------------


def saves(state: dict[str, torch.Tensor], path: Path, *, durable: bool) -> Contest:
    """Return the ways to save; the first is what the others are compared with."""

    def synced(write: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            write()
            if durable:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

        return act

    def ours(suffix: str) -> Callable[[], object]:
        return lambda: save(state, path.with_suffix(suffix), durable=durable)

    return {
        "torch.save" + " + fsync" * durable: synced(lambda: torch.save(state, path)),
        "safetensors.save_file" + " + fsync" * durable: synced(
            lambda: safetensors.torch.save_file(state, path)
        ),
        "torchkeep .safetensors, digests": ours(".safetensors"),
        "torchkeep .pth, digests and CRCs": ours(".pth"),
        "bare O_DIRECT" if durable else "bare os.write": (
            (lambda: write_direct(state, path)) if durable else synced(lambda: bare(state, path))
        ),
    }


def bare(state: dict[str, torch.Tensor], path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for value in state.values():
        os.write(fd, bytes_of(value))
    os.close(fd)


def write_direct(state: dict[str, torch.Tensor], path: Path, nbytes: int = 4 << 20) -> None:
    """Write as many bytes as the state has from one aligned buffer, past the page cache."""
    total = sum(value.nbytes for value in state.values())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0))
    with mmap.mmap(-1, nbytes) as buffer:
        for _ in range(-(-total // nbytes)):
            os.write(fd, buffer)
    os.fsync(fd)
    os.close(fd)


def loads(state: dict[str, torch.Tensor], model: torch.nn.Module, folder: Path) -> Contest:
    pth, tensors = folder / "theirs.pth", folder / "theirs.safetensors"
    torch.save(state, pth)
    safetensors.torch.save_file(state, tensors)

    def read(act: Callable[[], object]) -> Callable[[], None]:
        def act_and_read() -> None:
            act()
            for parameter in model.parameters():
                parameter.detach().sum()

        return act_and_read

    def by_torch(*, assign: bool) -> Callable[[], object]:
        return lambda: model.load_state_dict(
            torch.load(pth, mmap=True, weights_only=True), assign=assign
        )

    def by_safetensors(*, assign: bool) -> Callable[[], object]:
        return lambda: model.load_state_dict(safetensors.torch.load_file(tensors), assign=assign)

    contest = {}
    for assign in (False, True):
        how = ", assign" * assign
        contest[f"torch.load(mmap){how}"] = read(by_torch(assign=assign))
        contest[f"safetensors.load_file{how}"] = read(by_safetensors(assign=assign))
        for path in (pth, tensors):
            contest[f"torchkeep {path.suffix}, proven{how}"] = read(
                lambda path=path, assign=assign: load_into(model, path, assign=assign)
            )
    return contest


# --- Measuring ---------------------------------------------------------------------------------


def clear(path: Path) -> None:
    for suffix in ("", ".pth", ".safetensors"):
        with suppress(FileNotFoundError):
            path.with_suffix(suffix).unlink()
    os.sync()


def run(contest: Contest, repeats: int, prepare: Callable[[], None]) -> dict[str, float]:
    """Return the median seconds of each contestant; a first round warms up and doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(repeats + 1):
        for name, act in contest.items():
            prepare()
            start = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def report(title: str, medians: dict[str, float], nbytes: int) -> None:
    first = next(iter(medians.values()))
    print(f"\n{title}")
    for name, seconds in medians.items():
        rate = nbytes / seconds / 2**30
        print(f"  {name:38} {seconds:8.3f} s {rate:7.2f} GiB/s   x{first / seconds:.2f}")


if __name__ == "__main__":
    main()
