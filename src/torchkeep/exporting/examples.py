"""What a network is called with, to be exported and proven: real inputs, or a stated substitute."""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from PIL import Image

from torchkeep.errors import DamagedFile, FileMissing, WrongArgument
from torchkeep.exporting.pixels import prepared
from torchkeep.exporting.subjects import Subject
from torchkeep.exporting.targets.target import Dims
from torchkeep.formats.plain_json import parse_json
from torchkeep.loading import load
from torchkeep.outputs import as_arguments, place_of
from torchkeep.training.data import Data, open_validation, read_image, transform_of
from torchkeep.training.data.samples import Samples
from torchkeep.training.records.names import SETTINGS_FILE
from torchkeep.wording import counted, printable

NUM_IMAGES = 64
"""How many images are taken of a folder: enough that every batch size meets others."""

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs of a network, many rows of each."""

    args: tuple[torch.Tensor, ...]
    """The inputs, each `[n, ...]`."""
    names: tuple[str, ...]
    """What the network calls them."""
    described: str
    """What they are, in words."""
    is_real: bool
    """Whether they are the user's own, and no substitute."""
    pictures: tuple[Image.Image, ...] = ()
    """The images that they were made of, in the same order."""
    batch_size: int = 1
    """The rows of a call where their number may not vary: as many as were given at once."""
    dynamic: Dims = ()
    """By input, the dimensions that may vary, and their names: see `cases.let_vary`."""

    @property
    def num_rows(self) -> int:
        """The most rows of an input; 1 if none has rows."""
        return max((len(arg) for arg in self.args if arg.dim()), default=1)

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether the number of rows may vary."""
        return any(0 in dims for dims in self.dynamic)

    def call_size(self, wanted: int) -> int:
        """Return how many rows a call has: those wanted, where their number may vary."""
        return wanted if self.has_dynamic_batch else self.batch_size

    def rows(self, count: int, begin: int = 0) -> tuple[torch.Tensor, ...]:
        """Return so many rows of each, from one on; they begin anew at the end.

        If the rows of some inputs alone may vary, the others come as they are. If those of none
        may, so do inputs that have fewer rows than another.
        """
        if self.has_dynamic_batch:
            whole = [0 not in dims for dims in self.dynamic]
        else:
            whole = [arg.dim() > 0 and len(arg) < self.num_rows for arg in self.args]
        return tuple(
            arg if is_whole or not arg.dim() else cycled(arg, 0, count, begin)
            for arg, is_whole in zip(self.args, whole, strict=True)
        )


def cycled(arg: torch.Tensor, dim: int, count: int, begin: int = 0) -> torch.Tensor:
    """Return so many elements along a dimension, from one on, which begin anew at the end."""
    return arg.index_select(dim, torch.arange(begin, begin + count) % arg.shape[dim])


def read_examples(
    subject: Subject, example: Any = None, *, part: str = "val", whole: bool = False
) -> Examples:
    """Return what a network is called with.

    Args:
        subject: the network.
        example: a tensor `[n, ...]`, a tuple of them, a dict of them by the network's own names; a
            folder of images, an image, a data set that `torchkeep train` takes; or a file of
            tensors (`.npy`, `.npz`, `.pt`, `.safetensors`). None takes random numbers of the shape
            that is known for the network.
        part: which part of a data set that is split is taken, `train` or `val`.
        whole: all of a data set is for validation, and nothing to train on.

    Raises:
        WrongArgument: nothing tells what its inputs look like, or the example doesn't fit.
        FileProblem: a file is missing or can't be read.
    """
    if example is None:
        return _substitute(subject)
    if not isinstance(example, str | os.PathLike):
        return _of_tensors(subject, example, "tensors that were given")
    path = Path(example)
    if path.suffix in (".npy", ".npz", ".pt", ".pth", ".safetensors"):
        return _of_tensors(subject, _tensors_in(path), printable(path.name))
    return _of_pictures(subject, *_pictures_of(subject, os.fspath(example), part, whole))


def _substitute(subject: Subject) -> Examples:
    recipe = subject.preprocessing
    if recipe is None:
        raise WrongArgument(
            f"nothing tells what {subject.source} is called with",
            advice="Give inputs of the kind that it takes: a file of tensors (.npy, .npz, .pt, "
            ".safetensors) or images (example=, --example); in Python tensors as well.",
        )
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_IMAGES // 4, recipe.num_channels, recipe.height, recipe.width)
    if subject.takes_pixels:
        numbers = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    else:
        numbers = torch.randn(shape, generator=generator).to(place_of(subject.model)[1])
    return Examples(
        (numbers,),
        (_first_input(subject.model),),
        f"{counted(len(numbers), 'image')} of random numbers, in place of real ones",
        is_real=False,
    )


def _of_tensors(subject: Subject, example: Any, described: str) -> Examples:
    args, kwargs = as_arguments(example)
    ordered = _in_order(subject.model, args, kwargs)
    if not ordered:
        raise WrongArgument("the example is empty", advice="Give at least one tensor.")
    for name, value in ordered.items():
        if not isinstance(value, torch.Tensor):
            raise WrongArgument(
                f"the example's {name} is a {type(value).__name__}, and no tensor",
                advice="A deployment file takes tensors alone: torch.from_numpy makes one of an "
                "array, and a module around the network can fix the rest.",
            )
        if value.dim() and not len(value):
            raise WrongArgument(f"the example's {name} has no rows", advice="Give at least one.")
    rows = {len(value) for value in ordered.values() if value.dim()}
    most = max(rows, default=1)
    described = f"{described}, {counted(most, 'row')}"
    values = tuple(value.detach().cpu() for value in ordered.values())
    return Examples(values, tuple(ordered), described, is_real=True, batch_size=most)


def _in_order(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return inputs by the names that the network has for them, in its order.

    Raises:
        WrongArgument: it has no such inputs, or one between them was left out.
    """
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise WrongArgument(
            f"the example does not fit {type(model).__name__}.forward: {error}",
            advice="Give a tensor, a tuple of them in its order, or a dict by its names.",
        ) from None
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{at}": item for at, item in enumerate(value)}
        elif kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise WrongArgument(
                f"{type(model).__name__}.forward takes {name} by its name alone",
                advice="Wrap it in a module whose forward takes it in an order.",
            )
        else:
            found[name] = value
    before = list(bound.signature.parameters)[: len(found)]
    if kwargs and list(found) != before:
        raise WrongArgument(
            f"the example gives {', '.join(found)}, and {type(model).__name__}.forward has "
            f"{', '.join(before)} in this order",
            advice="Give all of them up to the last, or wrap the network in a module.",
        )
    return found


def _first_input(model: torch.nn.Module) -> str:
    """Return what a network calls its first input."""
    parameters = inspect.signature(model.forward).parameters
    return next(
        (
            name
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ),
        "input_0",
    )


def _tensors_in(path: Path) -> Any:
    if not path.is_file():
        raise FileMissing("there is no such file", advice="Check the path.", path=path)
    if path.suffix not in (".npy", ".npz"):
        return load(path)
    import numpy as np

    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if path.suffix == ".npy":
                return _tensor_of(found)
            return {name: _tensor_of(found[name]) for name in found.files}
    except (ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise DamagedFile(f"it holds no arrays of numbers ({error})", path=path) from None


def _tensor_of(array: Any) -> torch.Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _pictures_of(subject: Subject, source: str, part: str, whole: bool) -> tuple[list[Any], str]:
    """Return images, or tensors that are ready, from all over a source; and what they are."""
    path = Path(source)
    if path.is_file():
        return [read_image(path)], f"the image {printable(path.name)}"
    if path.is_dir():
        loose = sorted(each for each in path.iterdir() if each.suffix.lower() in _IMAGE_SUFFIXES)
        if loose:
            chosen = _spread(loose)
            return [read_image(each) for each in chosen], _told(len(chosen), source)
    samples: Any = getattr(_data_of(subject, source, whole=whole), part)
    if not len(samples):
        raise WrongArgument(
            f"{printable(source)} has no images to train on, and int8 learns its ranges from such",
            advice="Give some: calibration= (--calibrate).",
        )
    chosen = [samples[at][0] for at in _spread(range(len(samples)))]
    return chosen, _told(len(chosen), source)


def _told(count: int, source: str) -> str:
    return f"{counted(count, 'image')} of {printable(source)}"


def _spread(items: Sequence[Any]) -> list[Any]:
    """Return up to `NUM_IMAGES` items, from all over: folders have their classes one by one."""
    count = min(len(items), NUM_IMAGES)
    return [items[at * len(items) // count] for at in range(count)]


def _of_pictures(subject: Subject, pictures: list[Any], described: str) -> Examples:
    if isinstance(pictures[0], torch.Tensor):
        batch, pictures = torch.stack(pictures), []
    else:
        transform = _preparing(subject)
        batch = torch.stack([transform(picture) for picture in pictures])
    names = (_first_input(subject.model),)
    return Examples((batch,), names, described, is_real=True, pictures=tuple(pictures))


def _preparing(subject: Subject) -> Callable[[Any], torch.Tensor]:
    """Return what makes of an image what a network takes, in training's own way.

    Raises:
        WrongArgument: nothing tells how.
    """
    recipe = subject.preprocessing
    if recipe is None:
        raise WrongArgument(
            f"nothing tells how images are prepared for {subject.source}",
            advice="Give tensors instead: an .npy or .safetensors file (--example), no --data.",
        )
    if subject.takes_pixels:
        return lambda picture: torch.from_numpy(prepared(picture, subject.recipe() or {}))
    transform, dtype = transform_of(recipe), place_of(subject.model)[1]
    return lambda picture: transform(picture).to(dtype)


def validation_of(subject: Subject, source: Any, *, whole: bool) -> Samples:
    """Return validation data as a network takes them.

    Raises:
        WrongArgument: it does not take images, or the data have classes that it does not know.
    """
    transform = _preparing(subject)
    return _data_of(subject, source, whole=whole).transformed(transform, transform).val


def _data_of(subject: Subject, source: Any, *, whole: bool) -> Data:
    """Return data for a network, split as its training run has split them."""
    classes, how = subject.classes or None, _split_of(subject.run)
    return open_validation(source, classes=classes, whole=whole, **how)


def _split_of(run: Path | None) -> dict[str, Any]:
    """Return what a run's settings say of the split; what is not said, or is none, is left out.

    With another seed or share, what it was trained on would be among what it is validated on.
    """
    try:
        told = parse_json((run / SETTINGS_FILE).read_bytes()) if run else None
    except (OSError, DamagedFile):  # the file may be somebody else's
        return {}
    if not isinstance(told, dict):
        return {}
    share, seed = told.get("val_share"), told.get("seed")
    found: dict[str, Any] = {"val_share": share} if isinstance(share, float) else {}
    return found | ({"seed": seed} if isinstance(seed, int) else {})
