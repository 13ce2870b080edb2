"""The constants that docs/scaling.md reckons with; a Markdown table.

    python benchmarks/scaling_of_ranks.py           a minute

What a digest and a copy take per byte, what a manifest takes per tensor and piece on the disk and
to be written and read, and what ranks on one machine need to agree. With more ranks than cores
the latter waits for the system's scheduler, and not for the network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from distributed import torchrun
from save_load import machine, markdown
from torch import distributed

from torchkeep.checkpointing.layout.folder import lines_of
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.files import digest
from torchkeep.formats.own.manifest import manifest_digest, parse_manifest
from torchkeep.tensors import bytes_of

MIB = 1 << 20


def median_of(do: Callable[[], object], times: int = 9) -> float:
    """Return the median of the seconds that something takes."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        do()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def bytes_per_second() -> list[list[str]]:
    source, target = torch.ones(64 * MIB), torch.zeros(64 * MIB)
    size = source.nbytes / 1e9
    return [
        ["digest, GB/s", f"{size / median_of(lambda: digest(bytes_of(source))):.1f}"],
        ["copy, GB/s", f"{size / median_of(lambda: target.copy_(source)):.1f}"],
    ]


def manifests(num_pieces: int = 20_000) -> list[list[str]]:
    """Return what a manifest takes per piece of a sharded tensor."""
    ranks, per_rank = 20, num_pieces // 20
    files = [f"rank-{rank:05d}.safetensors" for rank in range(ranks)]
    keys = [f"objects/optimizer/state/state_dict/state/{n}/exp_avg_sq" for n in range(per_rank)]
    box = {"offsets": [1024, 0], "shape": [8192, 8192]}
    manifest = {
        "format": "torchkeep checkpoint",
        "version": 3,
        "step": 1,
        "serial": 1,
        "epoch": 0,
        "batch": 0,
        "metrics": {},
        "inexact": [],
        "date": "2026-01-01T00:00:00+00:00",
        "ranks": ranks,
        "structure": {"objects": {}},
        "files": {file: {"nbytes": 1, "digest": "0" * 32} for file in files},
        "tensors": {file: dict.fromkeys(keys, "0" * 32) for file in files},
        "tied": {file: {} for file in files},
        "boxes": {file: dict.fromkeys(keys, box) for file in files},
    }
    manifest["digest"] = manifest_digest(manifest)
    text = lines_of(manifest)
    write = median_of(lambda: (manifest_digest(manifest), lines_of(manifest)), 3)
    read = median_of(lambda: parse_manifest(text), 3)
    return [
        ["manifest, bytes per piece", f"{len(text) / num_pieces:.0f}"],
        ["manifest, written, us per piece", f"{write / num_pieces * 1e6:.1f}"],
        ["manifest, read and checked, us per piece", f"{read / num_pieces * 1e6:.1f}"],
    ]


def agreeing() -> None:
    """Measure as one rank; the first one prints."""
    distributed.init_process_group("gloo")
    ranks = Ranks.here()
    ranks.connect()
    numbers = torch.arange(4)
    table = {f"{n}": "0" * 32 for n in range(1000)}
    found = {
        "first": median_of(lambda: ranks.first(lambda: 1), 99),
        "each": median_of(lambda: ranks.each(lambda: 1), 99),
        "gathered, 1000 digests": median_of(lambda: ranks.gathered(lambda: table), 99),
        "told at a boundary": median_of(lambda: ranks.send_highest(numbers), 99),
    }
    ranks.send_highest(numbers)()  # has waited for all that was sent before
    if ranks.is_first:
        print(json.dumps(found))
    distributed.destroy_process_group()


def agreements(size: int) -> list[list[str]]:
    found = json.loads(torchrun(__file__, size, "--rank"))
    return [[f"{size} ranks: {name}, ms", f"{taken * 1e3:.2f}"] for name, taken in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().rank:
        agreeing()
        return
    print(machine())
    rows = [*bytes_per_second(), *manifests(), *agreements(2), *agreements(4)]
    print(markdown(["what", "measured"], rows))


if __name__ == "__main__":
    main()
