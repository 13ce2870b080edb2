"""Write the table of architectures: the names and shapes of torchvision's and timm's models.

    python scripts/build_architectures.py             a quarter of an hour on one core
    python scripts/build_architectures.py --check     write nothing, compare with what is there

Each model is made without weights, on the meta device where its constructor allows that, for two
numbers of classes and, in timm, of input channels. Sizes that change with them are stored as rules.
Nothing is downloaded. The layout is told in `torchkeep/identify/architectures/table.py`. The same
versions of the libraries give the same bytes. The last lines say what was left out, and why.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchkeep.identify.architectures.table import (
    CHILD_BITS,
    PATH,
    SAMPLE_SIZE,
    file_of,
    hash_of,
    weight_of,
)

Tensors = dict[str, str]
"""Shapes by key, as the table spells them: "64,i,7,7"."""

CLASSES = (11, 18)
CHANNELS = (3, 5)

VARIANTS = (
    (re.compile(r"(fcn|deeplabv3)_"), {"aux_loss": True}),
    (re.compile(r"googlenet|inception_v3"), {"aux_logits": False}),
)
"""Arguments of torchvision's models that published weights need, and that change the tensors."""

OLD_NAMES = (
    # torchvision/models/densenet.py, _load_state_dict: what is downloaded has them to this day.
    (re.compile(r"torchvision/densenet"), r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2"),
    # torchvision/models/vision_transformer.py, MLPBlock: likewise.
    (
        re.compile(r"torchvision/vit_"),
        r"mlp\.([03])",
        lambda found: f"mlp.linear_{1 + int(found[1]) // 3}",
    ),
)
"""What torchvision's models called their tensors before, and still load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PATH, help="where the table is")
    parser.add_argument("--check", action="store_true", help="exit with 1 if it would change")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    data = encode(versions(), learn_all([*torchvision_models(), *timm_models()]))
    if args.check:
        same = args.out.read_bytes() == data
        print(f"{args.out} {'is up to date' if same else 'would change'}")
        sys.exit(not same)
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data):,} bytes")


# --- The models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a model is made."""

    name: str
    make: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    takes_channels: bool = False
    """Whether the constructor has the argument `in_chans`."""

    def build(self, **more: Any) -> Any:
        """Return the model; on the CPU if its constructor computes with its parameters."""
        import torch

        try:
            with torch.device("meta"):
                return self.make(**self.arguments, **more)
        except NotImplementedError:
            return self.make(**self.arguments, **more)


def versions() -> list[str]:
    """Return the libraries and their versions, without what says how they were built."""
    import timm
    import torchvision

    return [f"{it.__name__} {it.__version__.partition('+')[0]}" for it in (torchvision, timm)]


def torchvision_models() -> Iterator[Recipe]:
    """Yield torchvision's models, and their variants."""
    from torchvision.models import get_model_builder, list_models

    for name in list_models():
        builder = get_model_builder(name)
        parameters = inspect.signature(builder).parameters
        without = {key: None for key in ("weights", "weights_backbone") if key in parameters}
        yield Recipe(f"torchvision/{name}", builder, without)
        for pattern, variant in VARIANTS:
            if pattern.match(name):
                text = ", ".join(f"{key}={value}" for key, value in variant.items())
                yield Recipe(f"torchvision/{name}({text})", builder, without | variant)


def timm_models() -> Iterator[Recipe]:
    """Yield timm's models."""
    import timm

    for name in timm.list_models():
        arguments = {"model_name": name, "pretrained": False}
        yield Recipe(f"timm/{name}", timm.create_model, arguments, takes_channels=True)


# --- What their tensors are ----------------------------------------------------------------------


def learn_all(recipes: list[Recipe]) -> list[tuple[str, Tensors]]:
    """Return the names and tensors of all models, telling how far it is."""
    learned: dict[str, Tensors] = {}
    notes: list[str] = []
    start = time.monotonic()
    for number, recipe in enumerate(recipes, 1):
        try:
            learned[recipe.name], remarks = learn(recipe)
        except Exception as problem:  # 1,500 constructors raise what they like
            remarks = [f"left out: {problem!r}"]
        notes += [f"{recipe.name}: {remark}" for remark in remarks]
        if number % 50 == 0 or number == len(recipes):
            print(f"{number} of {len(recipes)}, {time.monotonic() - start:.0f} s", flush=True)
    for name in [name for name in learned if name.startswith("torchvision/quantized_")]:
        if learned[name] == learned[name.replace("quantized_", "")]:
            del learned[name]
            notes.append(f"{name}: left out: before it is quantized, it is the one without")
    print("\n".join(notes))
    return [
        (name, variant)
        for name, tensors in learned.items()
        for variant in (tensors, *with_old_names(name, tensors))
    ]


def learn(recipe: Recipe) -> tuple[Tensors, list[str]]:
    """Return a model's tensors, and what could not be learned of it."""
    remarks = []
    few, many = CLASSES
    three, more = CHANNELS
    classes = {"num_classes": few}
    try:
        model = recipe.build(**classes)
    except TypeError as problem:
        remarks.append(f"the number of classes is not learned: {problem}")
        classes = {}
        model = recipe.build()
    shapes = shapes_of(model)
    rules = {key: [str(size) for size in shape] for key, shape in shapes.items()}
    if classes:
        varied = shapes_of(recipe.build(num_classes=many))
        remarks += put_rules(rules, shapes, varied, "c", (few, many))
    if recipe.takes_channels:
        varied = shapes_of(recipe.build(**classes, in_chans=more))
        remarks += put_rules(rules, shapes, varied, "i", (three, more))
    else:
        for key in input_convolutions(model):
            rules[key][1] = "i"
    tensors = {key: ",".join(sizes) for key, sizes in rules.items()}
    return {key: shape for key, shape in tensors.items() if not is_counter(key)}, remarks


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def put_rules(
    rules: dict[str, list[str]],
    shapes: dict[str, tuple[int, ...]],
    varied: dict[str, tuple[int, ...]],
    letter: str,
    values: tuple[int, int],
) -> list[str]:
    """Write rules for the sizes that changed when a number changed; return what hindered it."""
    what = {"c": "classes", "i": "input channels"}[letter]
    ranks = [{key: len(shape) for key, shape in it.items()} for it in (shapes, varied)]
    if ranks[0] != ranks[1]:
        return [f"other tensors with other {what}"]
    if shapes == varied:
        return [f"no tensor depends on the number of {what}"]
    low, high = values
    for key, shape in shapes.items():
        for at, (before, after) in enumerate(zip(shape, varied[key], strict=True)):
            factor, rest = divmod(after - before, high - low)
            if before != after and (rest or factor < 1):
                return [f"{key} depends on the number of {what}, and not by a rule"]
            if before != after:
                rules[key][at] = spell(factor, letter, before - factor * low)
    return []


def spell(factor: int, letter: str, constant: int) -> str:
    """Return the rule of a size as the table has it.

    >>> spell(1, "c", 0), spell(4, "c", 4)
    ('c', '4c+4')
    """
    return f"{factor if factor != 1 else ''}{letter}{f'{constant:+d}' if constant else ''}"


def input_convolutions(model: Any) -> list[str]:
    """Return the weights that see the image: torchvision's only convolutions of three channels."""
    from torch import nn

    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == CHANNELS[0]
    ]


def with_old_names(name: str, tensors: Tensors) -> Iterator[Tensors]:
    """Yield a model's tensors under the names that they had before."""
    for model, pattern, replacement in OLD_NAMES:
        if model.match(name):
            yield {re.sub(pattern, replacement, key): shape for key, shape in tensors.items()}


# --- The file ------------------------------------------------------------------------------------


def encode(libraries: list[str], models: Iterable[tuple[str, Tensors]]) -> bytes:
    """Return a table file.

    Args:
        libraries: lines about the versions.
        models: names and tensors; equal tensors under several names are stored once.
    """
    signatures: dict[frozenset[tuple[str, str]], tuple[Tensors, list[str]]] = {}
    for name, tensors in models:
        _, names = signatures.setdefault(frozenset(tensors.items()), (tensors, []))
        if name not in names:
            names.append(name)
    forest = Forest()
    all_tensors = [tensors for tensors, _ in signatures.values()]
    roots = [forest.add(nested(tensors)) for tensors in all_tensors]
    samples_of = [sample(tensors) for tensors in all_tensors]
    samples = sorted((it, owner) for owner, found in enumerate(samples_of) for it in found)
    shapes, components = list(forest.shapes), list(forest.components)
    starts, edges = forest.flat()
    weights = [
        sum(weight_of(len(shape.split(",")) if shape else 0) for shape in it.values())
        for it in all_tensors
    ]
    names_of = ["\t".join(names) for _, names in signatures.values()]
    text = "\n".join([*libraries, *components, *shapes, *names_of]).encode("ascii")
    body = b"".join(
        [
            *(pack("I", it) for it in (starts, edges, roots, weights)),
            pack("I", [len(found) for found in samples_of]),
            pack("I", [number for number, _ in samples]),
            pack("H", [owner for _, owner in samples]),
            text,
        ]
    )
    return file_of(
        len(libraries), len(components), len(shapes), len(starts) - 1, len(edges),
        len(roots), len(samples), len(text), body=body,
    )  # fmt: skip


def nested(tensors: Tensors) -> dict[str, Any]:
    """Return tensors by key as a tree of their keys' components."""
    tree: dict[str, Any] = {}
    for key, shape in tensors.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = shape
    return tree


class Forest:
    """Trees of which equal parts are stored once."""

    def __init__(self) -> None:
        self.components: dict[str, int] = {}
        self.shapes: dict[str, int] = {}
        self.nodes: dict[tuple[tuple[int, str | int], ...], int] = {}
        """By its edges: components, and the shapes or nodes below them."""

    def add(self, tree: dict[str, Any]) -> int:
        """Put a tree in, and return its node."""
        edges: list[tuple[int, str | int]] = []
        for component, below in tree.items():
            number = self.components.setdefault(component, len(self.components))
            if isinstance(below, str):
                self.shapes.setdefault(below, len(self.shapes))
            edges.append((number, below if isinstance(below, str) else self.add(below)))
        return self.nodes.setdefault(tuple(edges), len(self.nodes))

    def flat(self) -> tuple[list[int], list[int]]:
        """Return where each node's edges start, and the edges."""
        starts, flat = [0], []
        for edges in self.nodes:
            for component, below in edges:
                is_shape = isinstance(below, str)
                child = self.shapes[below] if is_shape else below + len(self.shapes)
                if child >> CHILD_BITS or component >> (32 - CHILD_BITS):
                    raise OverflowError("the table has grown beyond what an edge can number")
                flat.append(component << CHILD_BITS | child)
            starts.append(len(flat))
        return starts, flat


def sample(tensors: Tensors) -> list[int]:
    """Return the smallest hashes of the tensors whose shape is fixed."""
    fixed = {hash_of(key, shape) for key, shape in tensors.items() if not re.search("[ci]", shape)}
    return sorted(fixed)[:SAMPLE_SIZE]


def pack(code: str, numbers: list[int]) -> bytes:
    packed = array(code, numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


if __name__ == "__main__":
    main()
