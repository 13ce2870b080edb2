"""Data by its name: a folder of images, a data set of torchvision or scikit-learn, one's own."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import normalize

from torch.utils.data import ConcatDataset, Dataset, Subset

from torchkeep.errors import FileProblem, MissingExtra, WrongArgument
from torchkeep.networks import own_callable
from torchkeep.training.data.folders import ImageFolder, subfolders
from torchkeep.training.data.images import read_image
from torchkeep.training.data.samples import (
    Relabelled,
    Samples,
    Transformed,
    labelled,
    labels_of,
    length_of,
)
from torchkeep.training.data.splitting import split
from torchkeep.wording import counted, printable, shortened

_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}
"""What folders of a split are called, the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a network is trained on, and what it is validated on."""

    source: str
    """What it was opened by."""
    classes: tuple[str, ...]
    """The class names by label."""
    train: Samples
    """The samples to train on."""
    val: Samples
    """Other samples, to see how good it is."""
    skipped: tuple[str, ...] = ()
    """Files that were left out since they can't be read, each with the reason."""

    def transformed(self, train: Callable[[Any], Any], val: Callable[[Any], Any]) -> Data:
        """Return the same data, with a transform for the pictures of each part.

        Tensors stay as they are: who gives tensors has prepared them.
        """
        return replace(self, train=Transformed(self.train, train), val=Transformed(self.val, val))


def open_data(
    source: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    skip_broken: bool = False,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Data:
    """Return data to train and validate on.

    Args:
        source: a folder of images, with folders `train` and `val` (or `valid`, `validation`,
            `test`) of folders per class, or with folders per class alone; `digits`, which
            scikit-learn has; a class of `torchvision.datasets`, such as `FashionMNIST`; or
            `module:function`, which is imported and called, and returns two data sets.
        classes: the class names by label, such as a model's. The data may lack some, and may not
            have others. By default the data's own: each folder, and one without images is refused.
        val_share: how much is kept for validation where nothing says it; see `split`.
        seed: of that choice.
        skip_broken: read every image of a folder now, and leave out those that can't be read.
            Without it the first that is met raises. What is for validation is chosen before.
        root: where torchvision keeps its data sets.
        download: whether torchvision may fetch them.
        progress: is called with the images that were read, and with how many there are.

    Raises:
        FileMissing: the folder, or a class's, is missing.
        FileUnreadable: a folder may not be read.
        WrongArgument: there is no such data set, nothing to train on or to validate on in it, a
            class without images that can be read, or it has classes other than those given.
        MissingExtra: its library is not installed.
    """
    name = os.fspath(source)
    if Path(name).is_dir() or os.sep in name:
        data = _folder(Path(name), val_share, seed, skip_empty=classes is not None)
        data = _without_broken(data, progress) if skip_broken else data
    elif ":" in name:
        data = _own(name, val_share, seed)
    elif name == "digits":
        data = _digits(val_share, seed)
    else:
        place = Path(root)
        data = _of_torchvision(name, place, download=download, val_share=val_share, seed=seed)
    for part, samples in (("train", data.train), ("validate", data.val)):
        if not length_of(samples):
            raise WrongArgument(f"{printable(data.source)} has nothing to {part} on")
    return data if classes is None else _relabelled(data, tuple(classes))


def open_validation(
    source: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    val_share: float = 0.2,
    seed: int = 0,
) -> Data:
    """Return data to see how good a trained model is: `val` is what counts, `train` may be empty.

    Args:
        source: as for `open_data`, and a folder that has a part for validation alone.
        classes: the class names by label, such as the model's; see `open_data`.
        whole: everything is for validation, also what `open_data` would keep to train on.
        val_share: see `open_data`.
        seed: see `open_data`.

    Raises:
        FileMissing, FileUnreadable, WrongArgument, MissingExtra: see `open_data`.
    """
    folder = Path(source)
    if (base := _validation_alone(folder, classes or (), whole=whole)) is not None:
        found = ImageFolder(base, skip_empty=classes is not None)
        data = Data(str(source), found.classes, Subset(found, []), found)
        return data if classes is None else _relabelled(data, tuple(classes))
    data = open_data(source, classes=classes, val_share=val_share, seed=seed)
    if not whole:
        return data
    return replace(data, train=Subset(data.train, []), val=ConcatDataset([data.train, data.val]))


def _validation_alone(folder: Path, classes: Sequence[str], *, whole: bool) -> Path | None:
    """Return the folder of folders per class that is for validation and not to be split, if any."""
    if not folder.is_dir():
        return None
    parts = _parts_in(folder)
    if whole and not any(parts.values()):
        return folder
    names = subfolders(folder)
    is_alone = all(name.lower() in _PARTS["val"] and name not in classes for name in names)
    return parts["val"] if is_alone else None


def _relabelled(data: Data, classes: tuple[str, ...]) -> Data:
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        raise WrongArgument(
            f"{printable(data.source)} has images of {counted(len(unknown), 'class')} that "
            f"{'is' if len(unknown) == 1 else 'are'} not known here: {_listed(unknown)}",
            advice=_alike(unknown, classes) or "Move them away, or train a model that knows them.",
        )
    labels = [classes.index(name) for name in data.classes]
    train, val = Relabelled(data.train, labels), Relabelled(data.val, labels)
    return replace(data, classes=classes, train=train, val=val)


def _alike(unknown: Iterable[str], classes: Iterable[str]) -> str:
    """Say which class a folder may be meant for; empty if none. A Mac may spell "é" as two."""
    known = {normalize("NFC", name).casefold(): name for name in classes}
    for name in unknown:
        if other := known.get(normalize("NFC", name).casefold()):
            return f"Is {ascii(name)[:80]} what is called {ascii(other)[:80]} here? Rename it."
    return ""


def _folder(folder: Path, val_share: float, seed: int, *, skip_empty: bool) -> Data:
    parts = _parts_in(folder)
    base = parts["train"] or folder
    found = ImageFolder(base, skip_empty=skip_empty)
    if parts["train"] and parts["val"]:
        # A class that validation lacks keeps its label.
        val = ImageFolder(parts["val"], skip_empty=True)
        data = Data(str(folder), val.classes, val, val)
        return Data(str(folder), found.classes, found, _relabelled(data, found.classes).val)
    names = [path.relative_to(base).as_posix() for path, _ in found.samples]
    chosen = split(names, [label for _, label in found.samples], val_share, seed=seed)
    train, val = (_chosen(found, positions) for positions in chosen)
    return Data(str(folder), found.classes, train, val)


def _parts_in(folder: Path) -> dict[str, Path | None]:
    return {part: _first(folder, names) for part, names in _PARTS.items()}


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    # `Train` beside `Val` would be two classes otherwise.
    there = {name.lower(): folder / name for name in sorted(subfolders(folder))}
    return next((there[name] for name in names if name in there), None)


def _chosen(folder: ImageFolder, positions: Iterable[int]) -> ImageFolder:
    part = copy.copy(folder)
    part.samples = [folder.samples[at] for at in positions]
    return part


def _without_broken(data: Data, progress: Callable[[int, int], object] | None) -> Data:
    """Return the data without images that can't be read; every one is read for that.

    Raises:
        WrongArgument: nothing is left of a part, or of a class to train on.
    """
    train, val = _images_of(data.train), _images_of(data.val)
    problems = _problems([path for path, _ in (*train.samples, *val.samples)], progress)
    for part, verb in ((train, "train"), (val, "validate")):
        whole = [(path, label) for path, label in part.samples if path not in problems]
        if not whole:
            raise WrongArgument(
                f"{printable(data.source)}: no image to {verb} on can be read, of "
                f"{len(part.samples):,}; the last: {problems[part.samples[-1][0]]}"
            )
        lost = {label for _, label in part.samples} - {label for _, label in whole}
        if lost and part is train:
            raise WrongArgument(
                f"{printable(data.source)}: no image to train on can be read of "
                f"{counted(len(lost), 'class')}: {_listed([part.classes[at] for at in lost])}",
                advice="Copy the images again, or leave the class out.",
            )
        part.samples = whole
    return replace(data, skipped=tuple(problems.values()))


def _problems(
    paths: Sequence[Path], progress: Callable[[int, int], object] | None
) -> dict[Path, str]:
    """Return why images can't be read, by the files of those that can't."""
    problems = {}
    for count, path in enumerate(paths, 1):
        try:
            read_image(path)
        except FileProblem as error:
            problems[path] = str(error)
        if progress is not None:
            progress(count, len(paths))
    return problems


def _listed(names: Sequence[str]) -> str:
    shown = [shortened(name) for name in names[:5]]
    return ", ".join(shown if len(names) <= 5 else [*shown, "..."])


def _images_of(samples: Samples) -> ImageFolder:
    while not isinstance(samples, ImageFolder):
        samples = samples.samples  # type: ignore[attr-defined]
    return samples


def _digits(val_share: float, seed: int) -> Data:
    """Return scikit-learn's digits: 1,797 images of 8 x 8 pixels in 17 shades."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise MissingExtra.for_modules("scikit-learn's digits", ["sklearn"], "demo") from None
    from PIL import Image

    found = load_digits()
    pictures = [
        Image.frombytes("L", (8, 8), bytes(min(int(x) * 16, 255) for x in row.ravel()))
        for row in found.images
    ]
    pairs = _Pairs(
        [(picture, int(label)) for picture, label in zip(pictures, found.target, strict=True)]
    )
    return _of_parts("digits", map(str, range(10)), [pairs], val_share, seed)


class _Pairs(Dataset[tuple[Any, int]]):
    def __init__(self, pairs: list[tuple[Any, int]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pairs[index]


def _of_parts(
    source: str, classes: Iterable[str], parts: Iterable[Samples], val_share: float, seed: int
) -> Data:
    """Return data of a part to train on and one to validate on, or of one, split by position.

    Without names the classes are called by their numbers.
    """
    parts = [labelled(part) for part in parts]
    names = tuple(classes)
    if not names or len(parts) == 1:
        labels = labels_of(parts[0])  # may read every sample
        names = names or tuple(map(str, range(max(labels, default=-1) + 1)))
    if len(parts) == 1:
        chosen = split(list(map(str, range(len(labels)))), labels, val_share, seed=seed)
        parts = [Subset(parts[0], positions) for positions in chosen]
    train, val = parts
    return Data(source, names, train, val)


def _of_torchvision(name: str, root: Path, *, download: bool, val_share: float, seed: int) -> Data:
    datasets = importlib.import_module("torchvision.datasets")
    kind = getattr(datasets, name, None)
    if name not in datasets.__all__ or kind is None:
        near = get_close_matches(name, ["digits", *datasets.__all__], n=3)
        raise WrongArgument(
            f"there is no folder and no data set called {name!r}",
            advice=f"Is it {' or '.join(near)}?" if near else "Check the path.",
        )
    try:
        parts = _parts_of(kind, root, download=download)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise WrongArgument(
            f"{name} can't be opened in {root}: {str(error).splitlines()[0]}",
            advice="Let it be fetched (--download), or put it there as torchvision has it.",
        ) from None
    classes = map(_class_name, getattr(parts[0], "classes", ()) or ())
    return _of_parts(name, classes, parts, val_share, seed)


_SPLITS = (
    ("train", "test"),
    ("train", "val"),
    ("train", "valid"),
    ("trainval", "test"),
    ("train-standard", "val"),
)
"""What torchvision's data sets call their parts; the first pair that one knows counts."""


def _parts_of(kind: Callable[..., Samples], root: Path, *, download: bool) -> list[Samples]:
    """Return the part to train on and the one to validate on, or the only one that there is."""
    parameters = inspect.signature(kind).parameters
    place = (os.fspath(root),) if "root" in parameters else ()
    usual = {"download": download} if "download" in parameters else {}
    if "train" in parameters:
        return [kind(*place, train=is_train, **usual) for is_train in (True, False)]
    if "split" not in parameters:
        return [kind(*place, **usual)]
    for at, pair in enumerate(_SPLITS):
        try:
            return [kind(*place, split=split, **usual) for split in pair]
        except ValueError:  # there is no part of that name
            if at == len(_SPLITS) - 1:
                raise
    return []


def _class_name(name: object) -> str:
    """Return a class's name; ImageNet has several for each, the usual one first."""
    return str(name[0]) if isinstance(name, tuple) and name else str(name)


def _own(name: str, val_share: float, seed: int) -> Data:
    """Call somebody's own function; it returns `Data`, two data sets, or one to be split."""
    made = own_callable(name)()
    if isinstance(made, Data):
        return replace(made, train=labelled(made.train), val=labelled(made.val))
    parts = made if isinstance(made, tuple | list) else (made,)
    if not 1 <= len(parts) <= 2 or not all(hasattr(part, "__getitem__") for part in parts):
        raise WrongArgument(
            f"{name} gave a {type(made).__name__}",
            advice="Let it return a data set to train on and one to validate on.",
        )
    classes = map(str, getattr(parts[0], "classes", ()) or ())
    return _of_parts(name, classes, parts, val_share, seed)
