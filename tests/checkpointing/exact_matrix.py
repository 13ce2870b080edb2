"""The kinds of runs that are killed and resumed, and whether they end as if they never were.

`python tests/checkpointing/exact_matrix.py` kills each at every place that it has, one by one, and
prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpointing import exact_run
from checkpointing.gang import NOT_TOLD, run_gang

TIMEOUT_S = 120

CELLS: dict[str, dict] = {
    "no workers": {},
    "2 workers": {"workers": 2},
    "4 workers": {"workers": 4},
    "no dropout, SGD with momentum": {"dropout": 0.0, "optimizer": "sgd"},
    "augmentation by Python": {"augment": "python", "workers": 2},
    "augmentation by NumPy": {"augment": "numpy", "workers": 2},
    "augmentation by torch": {"augment": "torch", "workers": 2},
    "accumulation of 3": {"accumulate": 3, "every_steps": 1},
    "accumulation of 3, across epochs": {
        "accumulate": 3,
        "every_steps": 1,
        "keeps_leftover": True,
    },
    "bf16 parameters, fp32 moments": {"dtype": "bfloat16", "optimizer": "fp32 moments"},
    "EMA": {"ema": True},
    "GradScaler": {"scaler": True},
    "scheduler per epoch": {"schedule": "epoch"},
    "scheduler by the epoch's loss": {"schedule": "plateau"},
    "staged unfreezing": {"unfreeze": "flags"},
    "optimizer gains a group": {"unfreeze": "group"},
    "optimizer gains a group within an epoch": {"unfreeze": "group within"},
    "private generators": {"private": True},
    "saved while the loop waits": {"background": False, "every_steps": 1},
    "all of it": {
        "workers": 2,
        "accumulate": 3,
        "every_steps": 1,
        "keeps_leftover": True,
        "dtype": "bfloat16",
        "optimizer": "fp32 moments",
        "schedule": "plateau",
        "ema": True,
        "scaler": True,
        "private": True,
        "unfreeze": "group",
    },
}
"""What a run is told, by what is special about it. A step schedule, dropout, BatchNorm, AdamW and
augmentation by all three generators are in each that does not say otherwise."""


def launch(folder: Path, **options) -> int:
    """Run to the end or to death, and return the exit status."""
    ranks = range(options.get("ranks", 1))
    given = [exact_run.Given(folder, **options, rank=rank) for rank in ranks]
    statuses = run_gang(exact_run.main, [(some,) for some in given], TIMEOUT_S)
    for number, some in enumerate(given):
        if statuses[number] == NOT_TOLD:  # what it left tells as well
            is_done = (some.own / "result.json").exists()
            statuses[number] = 0 if is_done else -signal.SIGKILL
    # When one is killed, the others fail, if they are not killed before they notice.
    is_killed = -signal.SIGKILL in statuses
    told = [path.read_text() for path in folder.glob("rank-*/stderr")]
    assert is_killed or not any(statuses), "\n".join([f"they ended with {statuses}", *told])
    return -signal.SIGKILL if is_killed else 0


def killed_and_resumed(folder: Path, places: Sequence[str], **options) -> None:
    """Run, die at each of the places once, and go on each time until the end."""
    for number in range(1, len(places) + 1):
        assert launch(folder, **options, die_at=tuple(places)) == -signal.SIGKILL
        assert len(list((folder / "died").iterdir())) == number
    assert launch(folder, **options, die_at=tuple(places)) == 0


def reference_of(options: dict) -> dict:
    """Return the options of the run to compare with: how many workers there are may not matter."""
    return options | {"workers": 0}


def on_ranks(ranks: int, spread: str, options: dict) -> dict:
    """Return the options of the same run on several ranks."""
    return options | {"ranks": ranks, "spread": spread}


def has_ranks(cell: str, spread: str) -> bool:
    """Whether a kind of run can be trained on several ranks."""
    options = CELLS[cell]
    if spread == "fsdp" and (options.get("ema") or options.get("scaler")):
        return False  # FSDP2 copies no module (`AveragedModel`), and scales nothing on the CPU
    return not options.get("unfreeze")  # both look at what is trained only once


def on_device(device: str, options: dict) -> dict:
    """Return the options of the same run on a device."""
    options = options | {"device": device}
    if device == "cuda" and options.get("dtype") == "bfloat16":
        options["scaler"] = False  # PyTorch scales no bf16 gradients there
    return options


def places(folder: Path) -> list[str]:
    """Return where an uninterrupted run could have been killed; each place on another rank."""
    owns = own_folders(folder)
    if len(owns) == 1:
        return (owns[0] / "places").read_text().splitlines()
    lines = (owns[0] / "places").read_text().splitlines()
    return [f"{line} on {number % len(owns)}" for number, line in enumerate(lines)]


def own_folders(folder: Path) -> list[Path]:
    """Return the folders in which the ranks of a run tell of it."""
    return sorted(folder.glob("rank-*")) or [folder]


def result(folder: Path) -> dict:
    """Return the digests of everything that a run ended with, and its metrics."""
    return json.loads((folder / "result.json").read_text())


def seen(folder: Path) -> set[tuple]:
    """Return what a run saw, in all of its processes: epoch, batch, samples, and their loss."""
    lines = map(json.loads, (folder / "trace.jsonl").read_text().splitlines())
    return {(x["epoch"], x["batch"], tuple(x["indices"]), x["loss"]) for x in lines}


def differences(folder: Path, expected: Path) -> list[str]:
    """Return what is not as in the uninterrupted run, bit for bit, on any rank.

    A batch that was seen again after a resume counts too: it is another one if anything differs.
    """
    pairs = zip(own_folders(folder), own_folders(expected), strict=True)
    return [text for pair in pairs for text in _differences(*pair)]


def _differences(folder: Path, expected: Path) -> list[str]:
    found, wanted = result(folder), result(expected)
    digests = found["digests"].keys() | wanted["digests"].keys()
    different = [
        name
        for name in sorted(digests)
        if found["digests"].get(name) != wanted["digests"].get(name)
    ]
    different += ["metrics"] * (found["history"] != wanted["history"])
    return different + ["order of samples"] * (seen(folder) != seen(expected))


# --- The whole matrix --------------------------------------------------------------------------


def try_place(root: Path, expected: Path, options: dict, place: str) -> str:
    """Kill a run at one place; return what differs in the end, or why it has none, or nothing."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        try:
            killed_and_resumed(Path(folder), [place], **options)
            return ", ".join(differences(Path(folder), expected))
        except Exception as error:  # of one run, and the others go on
            return f"it failed: {error!r}"


def try_cell(root: Path, options: dict, stride: int, pool: ThreadPool) -> Iterator[tuple[str, str]]:
    """Yield each place where a run was killed, with what differed in the end."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        expected = Path(folder)
        assert launch(expected, **reference_of(options)) == 0
        where = places(expected)[::stride]
        tried = pool.imap(partial(try_place, root, expected, options), where)
        yield from zip(where, tried, strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", action="append", help="only cells whose name has this in it")
    parser.add_argument("--stride", type=int, default=1, help="kill at every so many-th place")
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--ranks", type=int, default=1, help="how many processes train together")
    parser.add_argument("--spread", default="ddp", help="how they do: ddp or fsdp")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    wanted = {n: o for n, o in CELLS.items() if any(part in n for part in given.cell or [""])}
    if given.ranks > 1:
        wanted = {
            name: on_ranks(given.ranks, given.spread, options)
            for name, options in wanted.items()
            if has_ranks(name, given.spread)
        }
    failures: list[str] = []
    print("| run | kills | bit-equal | seconds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as root, ThreadPool(given.jobs) as pool:
        for name, options in wanted.items():
            start = time.perf_counter()
            options = on_device(given.device, options)
            tried = list(try_cell(Path(root), options, given.stride, pool))
            bad = [f"{name}, killed at {place}: {text}" for place, text in tried if text]
            failures += bad
            seconds, num_equal = time.perf_counter() - start, len(tried) - len(bad)
            print(f"| {name} | {len(tried)} | {num_equal} | {seconds:.0f} |", flush=True)
    print("\n".join(["", *failures]) if failures else "\nEverything is equal, bit for bit.")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
