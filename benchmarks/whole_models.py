"""Which whole models are rebuilt: saved as data and by `torch.save`, loaded without unpickling.

Each model of torchvision's classification list, and a spread of timm's, is made with random
weights, saved both ways, rebuilt, and run: the output must be the same bit for bit. What isn't is
listed with the reason. `--timm N` bounds the number of timm's models, `--skip` passes the first,
`--largest N` leaves larger ones out. It takes a few seconds for each model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import timm
import torch
import torchvision

import torchkeep

SIDES = (96, 128, 224, None)
"""Sides of the picture that a model is tried with, the smallest first; None for its own."""


def torchvision_models() -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    for name in torchvision.models.list_models(module=torchvision.models):
        yield (
            f"torchvision/{name}",
            lambda name=name: torchvision.models.get_model(name, weights=None),
        )


def num_parameters(make: Callable[[], torch.nn.Module]) -> int:
    """Return the size of a model, made without values; 0 if it can't be made so."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sum(parameter.numel() for parameter in make().parameters())
        except Exception:  # some copy values while they are made, which meta has not
            return 0


def timm_models() -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    """Yield models of as many families as there are, then second ones, and so on."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    rounds = max(map(len, families.values()))
    ordered = [names[i] for i in range(rounds) for names in families.values() if i < len(names)]
    for name in ordered:
        yield f"timm/{name}", lambda name=name: timm.create_model(name, pretrained=False)


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
    parser.add_argument("--largest", type=int, default=100_000_000, help="parameters of a model")
    parser.add_argument("--no-torchvision", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files are written")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    fitting = (item for item in timm_models() if num_parameters(item[1]) <= options.largest)
    models = islice(fitting, options.skip, options.skip + options.timm)
    if not options.no_torchvision:
        ours = (it for it in torchvision_models() if num_parameters(it[1]) <= options.largest)
        models = chain(ours, models)
    num, num_failed, started = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, make in models:
            try:
                problem = check(make, Path(folder))
            except RuntimeError as error:
                problem = f"could not be tried: {error}"
            num += 1
            if problem:
                num_failed += 1
                print(f"{name}: {problem}", flush=True)
            if num % 25 == 0:
                print(f"... {num}, the last is {name}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    print(f"{num - num_failed} of {num} models rebuilt from both files, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
