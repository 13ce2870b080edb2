"""One network after another as .onnx, .pt2 and TorchScript, each proven in its own runtime.

`python tests/exporting/matrix.py` takes every classifier of torchvision and one or more of each
family of timm, and prints how many pass per target, and the reason for each that does not. It ends
with 1 if less than 95% of a target do. Values are random, statistics of BatchNorm those of noise:
no files are fetched. `--out FILE` keeps the results, and goes on where it was; `--jobs N` takes so
many at once, a core each. `--page docs/exported_networks.md` writes the page of the documentation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "training"))

TARGETS = ("onnx", "pt2", "torchscript")
LEAST = 0.95
TIMEOUT_S = 1500


def names() -> Iterator[str]:
    """Yield the networks, the small library first."""
    from surgery_matrix import TIMM
    from torchvision import models

    yield from (f"timm/{name}" for name in TIMM)
    yield from (f"torchvision/{name}" for name in models.list_models(module=models))


def one(name: str) -> dict[str, Any]:
    """Return what a network did, by target: empty for a pass, else the reason."""
    import torch
    from surgery_matrix import make, size_of

    from torchkeep.errors import TorchkeepError
    from torchkeep.exporting import export
    from torchkeep.exporting.proof import timing

    # Timed for a moment only: nothing here asks how fast they are.
    timing.ROUNDS, timing._ROUND_S = 2, 0.002
    model = _lively(make(name), side := size_of(name, make(name)))
    images = torch.randn(16, 3, side, side, generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"name": name, "side": side}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            begin = time.monotonic()
            place = Path(folder) / f"net.{target}"
            try:
                report = export(model, place, target=target, example=images)
                row[target] = {"problem": "", "differs": report.worst.relative}
            except TorchkeepError as error:
                row[target] = {"problem": str(error)}
            row[target]["seconds"] = round(time.monotonic() - begin, 1)
            for file in Path(folder).iterdir():
                file.unlink()
    return row


def _lively(model: Any, side: int) -> Any:
    """Return a network whose BatchNorms have the statistics of noise, as trained ones have some."""
    import torch

    # Of few images some channels vary so little that deep networks then make noise of any other:
    # with 4, an EfficientNetV2's float32 was 16% off its float64, and with 32 it is 1e-5 off.
    norms = [part for part in model.modules() if hasattr(part, "running_mean")]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(32, 3, side, side))
    return model.eval()


def _in_a_process(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"name": name} | {each: {"problem": "it took too long"} for each in TARGETS}
    except (IndexError, ValueError):
        problem = (done.stderr.splitlines() or ["it said nothing"])[-1]
        found = {"name": name} | {each: {"problem": problem} for each in TARGETS}
    return found


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", metavar="NAME")
    parser.add_argument("--out", metavar="FILE", type=Path)
    parser.add_argument("--only", metavar="N", type=int, help="each Nth network")
    parser.add_argument("--page", metavar="FILE", type=Path, help="write the results as a page")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="networks at once")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return 0
    known = {}
    if options.out and options.out.exists():
        rows = map(json.loads, options.out.read_text().splitlines())
        known = {row["name"]: row for row in rows}
    found = []
    with ThreadPoolExecutor(options.jobs) as pool:
        chosen = [*names()][:: options.only or 1]
        for row in pool.map(lambda name: known.get(name) or _in_a_process(name), chosen):
            found.append(row)
            if options.out and row["name"] not in known:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            marks = "  ".join(f"{each} {_mark(row[each])}" for each in TARGETS)
            print(f"{row['name']:<48} {marks}", flush=True)
    if options.page:
        options.page.write_text("\n".join(_page(found)) + "\n")
    return _told(found)


def _mark(result: dict[str, Any]) -> str:
    return "no" if result["problem"] else "ok"


def _told(found: list[dict[str, Any]]) -> int:
    is_enough = True
    for target in TARGETS:
        wrong = [(row["name"], row[target]["problem"]) for row in found if row[target]["problem"]]
        share = 1 - len(wrong) / len(found)
        is_enough &= share >= LEAST
        differs = [row[target].get("differs", 0) for row in found]
        print(f"\n{target}: {len(found) - len(wrong)} of {len(found)} pass ({share:.1%}), ", end="")
        print(f"outputs differ by at most {max(differs):.1e} of the largest value")
        for name, problem in wrong:
            print(f"  {name}: {problem}")
    return 0 if is_enough else 1


_HEAD = """\
# Networks that were exported

`make test-export` exports every classifier of torchvision, and one or more of each family of
timm, as ONNX, `.pt2` and TorchScript, and proves each file in its own runtime at batches of 1, 2
and 7. The weights are random and BatchNorm has the statistics of noise, since none are fetched;
images are of the smallest size that a network takes, where it takes any. The numbers are the
largest difference of two outputs, as a share of the largest; 0 is bit for bit. More than 1e-4
passes only where the file is as near to the result in float64 as PyTorch's own float32 is: random
weights make some deep networks that unstable, and for those the table says little.
"""


def _page(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page of the documentation."""
    yield _HEAD
    yield f"With {', '.join(f'{name} {version(name)}' for name in _PACKAGES)}:"
    yield ""
    for target in TARGETS:
        passed = sum(not row[target]["problem"] for row in found)
        yield f"- {target}: {passed} of {len(found)} pass"
    yield ""
    yield "| network | image | ONNX | `.pt2` | TorchScript |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in sorted(found, key=lambda row: str(row["name"]).partition("/")[::-1]):
        cells = (_cell(row[target]) for target in TARGETS)
        yield f"| {row['name']} | {row['side']} | {' | '.join(cells)} |"


_PACKAGES = ("torch", "torchvision", "timm", "onnxscript", "onnxruntime")


def _cell(result: dict[str, Any]) -> str:
    if result["problem"]:
        return f"no: {result['problem'].splitlines()[0]}".replace("|", "/")
    return f"{result['differs']:.1e}" if result["differs"] else "0"


if __name__ == "__main__":
    sys.exit(main())
