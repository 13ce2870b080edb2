"""What is wrong with image files: each is decoded once, and the checks look at what was noted.

Equal bytes and equal pixels are found by digests. Nearly equal ones by a difference hash (Krawetz,
"Kind of Like That", 2013: is each pixel of a thumbnail brighter than its left neighbour?), of 256
bits here, of which those of even areas say nothing, and by the thumbnails' difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from torchkeep.errors import FileProblem
from torchkeep.files import digest
from torchkeep.training.data.images import FORMATS, as_rgb, file_size
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.wording import counted, shortened

Samples = Sequence[tuple[str | os.PathLike[str], int]]
"""Image files with their labels."""

_SIDE = 16
"""Rows of a thumbnail, and bits of the hash per row."""
_MOST_BITS = 10
"""Bits in which the hashes of near duplicates contradict each other at most, of 256."""
_NOISE = 4
"""A difference of neighbours, of 255, that says nothing."""
_MOST_DIFFERENCE = 6.0
"""The root mean square of the difference of their thumbnails, of 255, at most, ..."""
_SHARE_OF_CONTRAST = 0.1
"""... and as a share of a thumbnail's own spread."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What was noted about an image file."""

    path: Path
    """The file."""
    label: int
    """Its label."""
    problem: str = ""
    """Why it can't be decoded; empty if it can. The fields below are empty then."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    mode: str = ""
    """Pillow's name of its channels: `RGB`, `L`, `I;16`, ..."""
    file_digest: str = ""
    """Of the file's bytes."""
    pixel_digest: str = ""
    """Of the size and the decoded pixels, as RGB."""
    is_blank: bool = False
    """All pixels have one colour."""
    thumbnail: bytes = b""
    """17 x 16 grey pixels."""


def look_at(samples: Samples, *, num_threads: int = 4) -> list[Picture]:
    """Return what is to be noted about image files, in their order. Each is read and decoded.

    Args:
        samples: the files with their labels, such as `ImageFolder.samples`.
        num_threads: so many files are decoded at a time.
    """
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(_look, samples))


def _look(sample: tuple[str | os.PathLike[str], int]) -> Picture:
    path, label = Path(sample[0]), sample[1]
    try:
        if not file_size(path):
            return Picture(path, label, "is empty")
        data = path.read_bytes()
        with Image.open(path, formats=FORMATS) as image:
            mode, picture = image.mode, as_rgb(image)
    except FileProblem as error:
        return Picture(path, label, shortened(error.problem, 120))
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        return Picture(path, label, shortened(f"{type(error).__name__}: {error}", 120))
    return Picture(
        path,
        label,
        size=picture.size,
        mode=mode,
        file_digest=digest(data),
        pixel_digest=f"{picture.size} {digest(picture.tobytes())}",
        is_blank=all(low == high for low, high in _extrema(picture)),
        thumbnail=picture.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX).tobytes(),
    )


def _extrema(picture: Image.Image) -> list[tuple[float, float]]:
    return [picture.getchannel(number).getextrema() for number in range(3)]  # type: ignore[misc]


# --- Single images -----------------------------------------------------------------------------


def broken_images(pictures: Sequence[Picture]) -> list[Finding]:
    """Return what files can't be decoded (error), or are of one colour (warning)."""
    found = []
    if broken := [item for item in pictures if item.problem]:
        shown = [f"{item.path.name} ({item.problem})" for item in broken]
        text = f"{len(broken):,} of {counted(len(pictures), 'image')} can't be read: "
        advice = "Remove or replace them: the first one that is drawn ends the training."
        found.append(Finding("broken-images", "error", text + listed(shown), advice))
    if blank := [item.path.name for item in pictures if item.is_blank]:
        text = f"{len(blank):,} of {counted(len(pictures), 'image')} are of one colour: "
        advice = "Look at them: nothing can be learnt from an image that shows nothing."
        found.append(Finding("blank-images", "warning", text + listed(blank), advice))
    return found


def tiny_images(pictures: Sequence[Picture], input_size: int) -> list[Finding]:
    """Return a note if one image in ten is smaller than half of what the network takes.

    Args:
        pictures: from `look_at`.
        input_size: the height and width of the network's input in pixels.
    """
    sides = sorted(min(item.size) for item in pictures if not item.problem)
    tiny = [side for side in sides if 2 * side < input_size]
    if not tiny or 10 * len(tiny) < len(sides):
        return []
    text = (
        f"{len(tiny):,} of {counted(len(sides), 'image')} are less than half as high or wide as "
        f"the network's input of {input_size} pixels; half of all have {sides[len(sides) // 2]} "
        "or less"
    )
    advice = "A smaller input size is faster and shows as much; or get the images in full size."
    return [Finding("tiny-images", "note", text, advice)]


def conflicting_labels(pictures: Sequence[Picture], classes: Sequence[str]) -> list[Finding]:
    """Return a warning if equal images have different labels."""
    first: dict[str, Picture] = {}
    pairs = []
    for item in pictures:
        if item.problem or item.is_blank:
            continue
        other = first.setdefault(item.pixel_digest, item)
        if other.label != item.label:
            pairs.append((other, item))
    if not pairs:
        return []
    one, other = pairs[0]
    text = (
        f"{counted(len(pairs), 'image')} with another label than an equal one: {one.path.name} is "
        f"{classes[one.label]}, and {other.path.name} with the same pixels {classes[other.label]}"
    )
    return [Finding("conflicting-labels", "warning", text, "Decide which label is right.")]


# --- Train and validation ----------------------------------------------------------------------


def duplicates(
    train: Sequence[Picture], validation: Sequence[Picture], *, near: bool = True
) -> list[Finding]:
    """Return what images of the validation data are trained on.

    Equal files and equal pixels are errors; what looks nearly the same is a note, since series of
    real images do. Images of one colour are left out.

    Args:
        train: from `look_at`.
        validation: from `look_at`.
        near: also look for what is nearly the same.
    """
    found: list[Finding] = []
    rest = [item for item in validation if not (item.problem or item.is_blank)]
    against = [item for item in train if not (item.problem or item.is_blank)]
    for what, key in _EQUAL:
        known = {key(item): item for item in against}
        pairs = [(item, known[key(item)]) for item in rest if key(item) in known]
        rest = [item for item in rest if key(item) not in known]
        if pairs:
            text = _paired(pairs, len(validation), what)
            advice = "Remove them from one side: accuracy on them is memory, and no measure."
            found.append(Finding("duplicates", "error", text, advice))
    if near and (pairs := _near(rest, against)):
        text = _paired(pairs, len(validation), "look nearly like one that is trained on")
        advice = "Keep images of one series, scene or patient on one side."
        found.append(Finding("near-duplicates", "note", text, advice))
    return found


_EQUAL: tuple[tuple[str, Callable[[Picture], str]], ...] = (
    ("are files that are trained on", lambda item: item.file_digest),
    ("have the pixels of one that is trained on", lambda item: item.pixel_digest),
)


def _paired(pairs: Sequence[tuple[Picture, Picture]], number: int, what: str) -> str:
    one, other = pairs[0]
    names = [f"{item.path.parent.name}/{item.path.name}" for item in (one, other)]
    return f"{len(pairs):,} of {counted(number, 'validation image')} {what}: {listed(names)}"


def _near(some: Sequence[Picture], others: Sequence[Picture]) -> list[tuple[Picture, Picture]]:
    """Return each of `some` with the first of `others` that looks nearly like it."""
    if not some or not others:
        return []
    there, signs = _thumbnails(others)
    pairs: list[tuple[Picture, Picture]] = []
    for start in range(0, len(some), 256):
        part = some[start : start + 256]
        here, its_signs = _thumbnails(part)
        # Products of signs count what agrees less what contradicts; of their sizes, both.
        contradicting = (its_signs.abs() @ signs.abs().T - its_signs @ signs.T) / 2
        difference = torch.cdist(here, there) / here.shape[1] ** 0.5
        limit = (here.std(dim=1, keepdim=True) * _SHARE_OF_CONTRAST).clamp(max=_MOST_DIFFERENCE)
        is_near = (contradicting <= _MOST_BITS) & (difference <= limit)
        found = is_near.any(dim=1).nonzero().flatten().tolist()
        pairs += [(part[index], others[int(is_near[index].int().argmax())]) for index in found]
    return pairs


def _thumbnails(pictures: Iterable[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return thumbnails `[n, 272]` in 0..255 and their hashes as signs `[n, 256]`, float32."""
    data = bytearray(b"".join(item.thumbnail for item in pictures))
    grey = torch.frombuffer(data, dtype=torch.uint8).view(-1, _SIDE, _SIDE + 1).float()
    steps = grey[:, :, 1:] - grey[:, :, :-1]
    return grey.flatten(1), (steps.sign() * (steps.abs() > _NOISE)).flatten(1)
