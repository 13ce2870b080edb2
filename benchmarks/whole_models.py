"""Which whole models are rebuilt: saved as data and by `torch.save`, loaded without unpickling.

Each model of torchvision's classification list, and a spread of timm's, is made with random
weights, saved both ways, rebuilt, and run: the output must be the same bit for bit. What isn't is
listed with the reason. `--timm N` bounds the number of timm's models, `--skip` passes the first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision

import torchkeep

LARGEST = 30_000_000
"""Parameters of a model that is still taken from timm."""
SIDES = (96, 128, 224, None)
"""Sides of the picture that a model is tried with, the smallest first; None for its own."""


def torchvision_models() -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    for name in torchvision.models.list_models(module=torchvision.models):
        yield (
            f"torchvision/{name}",
            lambda name=name: torchvision.models.get_model(name, weights=None),
        )


def timm_models(most: int, skipped: int) -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    """Yield models of as many families as there are, then second ones, and so on."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    rounds = max(map(len, families.values()))
    ordered = [names[i] for i in range(rounds) for names in families.values() if i < len(names)]
    taken = 0
    for name in ordered:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                size = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception:  # some copy values while they are made, which meta has not
                size = LARGEST
        if size > LARGEST:
            continue
        taken += 1
        if taken > skipped:
            yield f"timm/{name}", lambda name=name: timm.create_model(name, pretrained=False)
        if taken == most:
            return


def run(model: torch.nn.Module, side: int) -> torch.Tensor | None:
    """Return what a model makes of a picture of noise; None if it takes none of this size."""
    picture = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            made = model(picture)
    except Exception:
        return None
    while isinstance(made, tuple | list | dict):
        made = next(iter(made.values())) if isinstance(made, dict) else made[0]
    return made


def output_and_side(model: torch.nn.Module) -> tuple[torch.Tensor, int]:
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for side in SIDES:
        made = run(model, side or own)
        if made is not None:
            return made, side or own
    raise RuntimeError("it takes no picture that was tried")


def check(make: Callable[[], torch.nn.Module], folder: Path) -> str:
    """Return why a model is not rebuilt; an empty text if it is, from both files."""
    model = make().eval()
    expected, side = output_and_side(model)
    own, pickled = folder / "model.safetensors", folder / "model.pt"
    torchkeep.save(model, own, whole=True, overwrite=True, durable=False)
    torch.save(model, pickled)
    for path in (own, pickled):
        try:
            again = torchkeep.load_model(path)
            made = run(again, side)
        except Exception as error:  # the reason is what is asked for
            return f"{path.suffix}: {type(error).__name__}: {str(error)[:400]}"
        if made is None or not torch.equal(made, expected):
            return f"{path.suffix}: another output"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm", type=int, default=200, help="models of timm")
    parser.add_argument("--skip", type=int, default=0, help="models of timm to pass over")
    parser.add_argument("--no-torchvision", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files are written")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    models = [] if options.no_torchvision else list(torchvision_models())
    num, failed, started = 0, [], time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, make in (*models, *timm_models(options.timm, options.skip)):
            try:
                problem = check(make, Path(folder))
            except RuntimeError as error:
                problem = f"could not be tried: {error}"
            num += 1
            if problem:
                failed.append(f"{name}: {problem}")
                print(failed[-1], flush=True)
    seconds = time.monotonic() - started
    print(f"{num - len(failed)} of {num} models rebuilt from both files, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
