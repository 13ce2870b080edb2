"""Write the table of architectures: the names and shapes of torchvision's and timm's models.

    python scripts/build_architectures.py             half an hour on one core, no downloads
    python scripts/build_architectures.py --check     and compare with the table that is there

Each model is made without weights, on the meta device where its constructor allows that, for two
numbers of classes and two of input channels. Sizes that change with them are stored as rules. The
layout is in `torchkeep/identify/architectures/table.py`. The same versions of the libraries give
the same bytes. The last lines say what was left out and why.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import time
import warnings
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchkeep.identify.architectures.table import (
    CHILD_BITS,
    PATH,
    SAMPLE_SIZE,
    hash_of,
    header,
    weight_of,
)

Shapes = dict[str, tuple[int, ...]]
Rules = dict[str, str]
"""Shapes by key as the table spells them: "64,i,7,7"."""
Make = Callable[..., Any]

NUM_CLASSES = (11, 18)
INPUT_CHANNELS = (3, 5)

VARIANTS = {
    re.compile(r"(fcn|deeplabv3)_"): {"aux_loss": True},
    re.compile(r"googlenet|inception_v3"): {"aux_logits": False},
}
"""Arguments of torchvision's models that published weights need, and that change the tensors."""

OLD_NAMES = {
    # torchvision/models/densenet.py, _load_state_dict: the weights that are downloaded have them.
    re.compile(r"densenet"): (r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2"),
    # torchvision/models/vision_transformer.py, MLPBlock: likewise.
    re.compile(r"vit_"): (r"mlp\.([03])", lambda found: f"mlp.linear_{1 + int(found[1]) // 3}"),
}
"""What torchvision's models called their tensors once, and still load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PATH, help="where to write the table")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    data = encode(versions(), learn_all())
    if args.check:
        same = args.out.read_bytes() == data
        print("the table is the same" if same else "the table differs")
        sys.exit(not same)
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data):,} bytes")


# --- Learning ------------------------------------------------------------------------------------


def versions() -> list[str]:
    """Return the libraries with their versions, without what says how they were built."""
    import timm
    import torchvision

    return [
        f"{library.__name__} {library.__version__.partition('+')[0]}"
        for library in (torchvision, timm)
    ]


def learn_all() -> list[tuple[str, Rules]]:
    """Return every model's name and tensors."""
    found: list[tuple[str, Rules]] = []
    notes: list[str] = []
    jobs = [*torchvision_models(), *timm_models()]
    start = time.monotonic()
    for number, (name, make) in enumerate(jobs, 1):
        try:
            rules, remarks = learn(make)
        except Exception as error:  # whatever one of 1,500 constructors raises, the others go on
            notes.append(f"{name}: left out: {type(error).__name__}: {error}")
            continue
        notes += [f"{name}: {remark}" for remark in remarks]
        found += [(name, rules), *((name, old) for old in old_names(name, rules))]
        if number % 50 == 0 or number == len(jobs):
            print(f"{number}/{len(jobs)}  {time.monotonic() - start:.0f} s  {name}", flush=True)
    found, same = without_quantized(found)
    print("\n".join([*notes, *same]))
    return found


def torchvision_models() -> Iterator[tuple[str, Make]]:
    """Yield the name of each of torchvision's models, and what makes it."""
    from torchvision.models import get_model, get_model_builder, list_models

    for name in list_models():
        parameters = inspect.signature(get_model_builder(name)).parameters
        fixed = {"weights": None}
        if "weights_backbone" in parameters:
            fixed["weights_backbone"] = None

        def make(name: str = name, fixed: dict[str, Any] = fixed, **given: Any) -> Any:
            return get_model(name, **fixed, **given)

        yield f"torchvision/{name}", make
        for pattern, variant in VARIANTS.items():
            if pattern.match(name):
                text = ", ".join(f"{key}={value}" for key, value in variant.items())
                yield (
                    f"torchvision/{name}({text})",
                    lambda make=make, variant=variant, **given: make(**variant, **given),
                )


def timm_models() -> Iterator[tuple[str, Make]]:
    """Yield the name of each of timm's models, and what makes it."""
    import timm

    for name in timm.list_models():

        def make(name: str = name, **given: Any) -> Any:
            return timm.create_model(name, pretrained=False, **given)

        yield f"timm/{name}", make


def learn(make: Make) -> tuple[Rules, list[str]]:
    """Return a model's tensors, and what could not be learned."""
    remarks = []
    few, many = NUM_CLASSES
    channels, more = INPUT_CHANNELS
    base: dict[str, Any] = {"num_classes": few}
    try:
        model = build(make, base)
    except TypeError as error:
        remarks.append(f"the classes can't be chosen: {error}")
        base = {}
        model = build(make, base)
    shapes = shapes_of(model)
    rules = {key: [str(size) for size in shape] for key, shape in shapes.items()}
    if base:
        others = shapes_of(build(make, {"num_classes": many}))
        put_rules(rules, shapes, others, "c", few, many)
    if make_takes_channels(model):
        others = shapes_of(build(make, {**base, "in_chans": more}))
        put_rules(rules, shapes, others, "i", channels, more)
    else:
        put_input_convolutions(rules, model, channels)
    return {key: ",".join(sizes) for key, sizes in rules.items()}, remarks
