"""Who resumes exactly: the same small run, killed and resumed, with four libraries side by side.

Each run is written and resumed as its library's documentation says (`benchmarks/peer_runs/`). It
is killed with SIGKILL four times, one at a time: twice within an epoch, where the newest
checkpoint is of some steps before, and twice in the first batch of an epoch, where it is of the
end of the one before. A kill counts as exact if parameters, optimizer and average, each batch's
samples and each batch's loss are, bit for bit, those of the same program that was never killed.

Libraries that are not installed are left out: `pip install torchkeep[peers]`. It takes some
minutes; `--peer` and `--cell` do a part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Transformers would look for files in a hub; nothing here is there.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from peer_runs import task

PEERS = {
    "torchkeep": "torchkeep_run",
    "lightning": "lightning_run",
    "transformers": "hf_run",
    "accelerate": "accelerate_run",
}
TITLES = {"lightning": "Lightning", "transformers": "HF Trainer"}
CELLS: dict[str, dict] = {
    "order of samples": {"dropout": 0.0},
    "+ dropout": {},
    "+ 2 workers": {"workers": 2},
    "+ augmentation by Python": {"augment": "python"},
    "+ augmentation by NumPy": {"augment": "numpy"},
    "+ augmentation by torch": {"augment": "torch"},
    "+ augmentation, 2 workers": {"augment": "torch", "workers": 2},
    "+ accumulation of 3": {"accumulate": 3},
    "+ bf16 with fp32 moments": {"moments": True},
    "+ EMA": {"ema": True},
    "+ scheduler per epoch": {"schedule": "epoch"},
    "+ staged unfreezing": {"unfreeze": "flags"},
    "+ optimizer gains a group": {"unfreeze": "group"},
}
"""All but the first have dropout too; what is added to that is said."""

LACKS = {("transformers", "+ EMA"), ("transformers", "+ scheduler per epoch")}
"""What a library has no way of its own for."""

WITHIN, ENDS = ("steps", (9, 16)), ("epochs", (6, 12))
"""When to save, and after which batch's backward to die."""

LOADED = {
    "torchkeep": ["torch", "torch._dynamo", "torchkeep.checkpointing"],
    "lightning": ["lightning.pytorch.callbacks"],
    "transformers": ["transformers.trainer"],
    "accelerate": ["accelerate.utils"],
}
"""What is loaded once, before processes are forked. (That server doesn't see our folder.)"""

CONTEXT = multiprocessing.get_context("forkserver")


def child(program: str, given: task.Given) -> None:
    os.setpgrp()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    with (
        (given.folder / "output").open("a") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        importlib.import_module(f"peer_runs.{program}").run(given)


def launch(program: str, given: task.Given) -> int:
    """Run to the end or to death, and return the exit status."""
    process = CONTEXT.Process(target=child, args=(program, given))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode if process.exitcode is not None else 1


def outcome(folder: Path) -> tuple[dict, dict]:
    """Return the digests that a run ended with, and each batch as it was seen last."""
    seen = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        number, indices, loss = json.loads(line)
        seen[number] = [indices, loss]
    return json.loads((folder / "result.json").read_text()), seen


def compare(expected: tuple[dict, dict], found: tuple[dict, dict]) -> str:
    """Return what the first thing is that differs, or nothing."""
    orders = [{number: row[0] for number, row in seen.items()} for _, seen in (expected, found)]
    if orders[0] != orders[1]:
        return "samples"
    if expected[1] != found[1]:
        return "losses"
    return ", ".join(name for name in expected[0] if expected[0][name] != found[0][name])


def attempt(root: Path, program: str, options: dict, expected: tuple[dict, dict]) -> str:
    """Kill a run, resume it, and return what differs; `error` if it can't be resumed."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        given = task.Given(Path(folder), **options)
        status = launch(program, given)
        assert status == -signal.SIGKILL, (Path(folder) / "output").read_text()[-2000:]
        if launch(program, given) != 0:
            return "error"
        return compare(expected, outcome(Path(folder)))


def measure(root: Path, program: str, options: dict) -> dict[str, list[str]]:
    """Return what differed after the kills within epochs, and after those at their beginning."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        given = task.Given(Path(folder), **options)
        if launch(program, given) != 0:
            raise RuntimeError((given.folder / "output").read_text()[-2000:])
        expected = outcome(given.folder)
    return {
        by: [
            attempt(root, program, {**options, "by": by, "die_at": place}, expected)
            for place in places
        ]
        for by, places in (WITHIN, ENDS)
    }


def shown(results: dict[str, list[str]]) -> str:
    """Return one cell of the table."""
    texts = []
    for problems in results.values():
        counts = Counter(filter(None, problems))
        why = ", ".join(counts)
        texts.append(f"{problems.count('')}/{len(problems)}" + (f" ({why})" if why else ""))
    return "; ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--cell", action="append", help="cells whose name has this in it")
    given = parser.parse_args()
    peers = [name for name in given.peer or PEERS if importlib.util.find_spec(name)]
    cells = [n for n in CELLS if any(part in n for part in given.cell or [""])]
    CONTEXT.set_forkserver_preload([name for peer in peers for name in LOADED[peer]])
    names = [f"{TITLES.get(name, name)} {importlib.metadata.version(name)}" for name in peers]
    print(f"Python {platform.python_version()}, PyTorch {importlib.metadata.version('torch')}")
    print("Exact of those killed within an epoch; of those at its beginning (what differs first).")
    print("\n| run | " + " | ".join(names) + " |\n|---" + "|---" * len(peers) + "|")
    with tempfile.TemporaryDirectory() as root:
        for cell in cells:
            row = []
            for name in peers:
                if (name, cell) in LACKS:
                    row.append("it has none")
                else:
                    row.append(shown(measure(Path(root), PEERS[name], CELLS[cell])))
            print(f"| {cell} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
