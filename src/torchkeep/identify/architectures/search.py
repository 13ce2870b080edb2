"""Finding the architecture that a state dict's names and shapes belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torchkeep.identify.architectures.table import (
    Table,
    fill,
    hash_of,
    rule_of,
    shipped_table,
    weight_of,
)
from torchkeep.matching.keys import AVERAGE_COUNTER, strip_wrappers

THRESHOLD = 0.7
"""The lowest score that is reported.

Above it is a network of the table with another head, stem, normalisation or attention: AlexNet,
which is mostly head, has 0.74 with a single layer for its three, and the ResNet18 for CIFAR that
calls its shortcuts and its head by names of its own 0.71. Below are networks that share a part:
mostly another depth of a family (ResNet101 and 152 0.67, DenseNet121 and 169 0.61; two very deep
ones share more), the same widths with other kernels (0.61), a backbone in something as large (0.5).
Other widths, and networks of other kinds, are below 0.1.
"""

_LONGEST_KEY = 500
"""Characters of a key; those in the table have at most a hundred."""
_MOST_DIMS = 8
_LARGEST_SIZE = 1 << 62
_IMPOSSIBLE = "-"
_DEEPEST_PREFIX = 5
"""Components before the keys that are looked behind."""
_SLACK = 0.35
"""How far below the threshold the estimate of a score above it may be."""
_MOST_COMPARED = 24
"""Signatures that are compared tensor by tensor behind each prefix."""
_MOST_RUNNERS_UP = 3
"""Signatures reported below the best, unless the best is the file's to the last tensor."""


@dataclass(frozen=True, slots=True)
class ArchitectureMatch:
    """A model of a library that a state dict can be of.

    BatchNorm's counters (`num_batches_tracked`) and the count of an averaged model are not looked
    at: they say nothing, and old files lack them.
    """

    name: str
    """Library and model: "torchvision/resnet18"; with the arguments that are not the default."""
    score: float
    """How much of the two is the same, from 0 to 1.

    The tensors that agree in name and shape, divided by all that the file or the model has. Each
    counts once per dimension, and a scalar once. A shape agrees as well if the number of classes
    or of input channels explains it. Tensors that depend on the classes don't count if the file
    has none of them: it has another head, or none.
    """
    num_classes: int | None
    """The constructor's number of classes (detection: with the background); None without head."""
    input_channels: int | None
    """The constructor's number of input channels; None if no tensor tells."""
    missing: tuple[str, ...]
    """Keys that the model has and the file lacks, in the model's order."""
    unexpected: tuple[str, ...]
    """Keys that the file has and the model lacks, as they are written."""
    mismatched: tuple[str, ...]
    """Keys of both, as they are written, whose shapes differ by more than those two numbers."""
    prefix: str
    """What stands before the model's keys, wrappers aside: "backbone."; empty for most files."""
    is_part: bool = False
    """Whether the file is a larger network that holds the whole of the model, but for its head
    perhaps: an encoder with a decoder behind it."""
    named_by: str = ""
    """What in the file names it rather than others of the same score: "its class", or the path of a
    value; empty if nothing does."""


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> tuple[ArchitectureMatch, ...]:
    """Return the models that a state dict can be of, best first; () if there is none.

    Models that weights can't tell apart share their score, and all of the best are there. Unless
    these agree to the last tensor, the models of three further signatures follow at most.

    Args:
        shapes: the shapes of the tensors by key, as the file has them.

    Raises:
        DamagedFile: the table that comes with torchkeep is missing or broken.
    """
    return recognise_in(shipped_table(), shapes)


def recognise_in(
    table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ArchitectureMatch, ...]:
    """Return what `recognise` does, from another table."""
    file = _read(shapes, largest=max(table.weights) / THRESHOLD)
    found: list[_Comparison] = []
    depth = 0
    while file is not None and depth <= _DEEPEST_PREFIX:
        found += _compare_with_all(table, file)
        file = _behind_prefix(file, at_least=max([THRESHOLD, *(item.score for item in found)]))
        depth += 1
    return _report(table, found)


# --- The state dict ------------------------------------------------------------------------------


class _Tensor(NamedTuple):
    """A tensor of the file."""

    key: str
    """As it is written."""
    shape: str
    """As the table spells it; empty for a scalar, `_IMPOSSIBLE` for one that no model has."""
    weight: int


class _File(NamedTuple):
    """A state dict, read as if the model stood behind a prefix."""

    prefix: str
    tensors: dict[str, _Tensor]
    """What is behind the prefix, by the key in the model."""
    others: list[_Tensor]
    """What is not."""
    weight: int
    """Of all."""


def _read(shapes: Mapping[str, tuple[int, ...]], largest: float) -> _File | None:
    """Return a state dict without its wrappers; None if it is empty or heavier than `largest`."""
    counted = {
        key: weight_of(min(len(shape), _MOST_DIMS))
        for key, shape in shapes.items()
        if not key.endswith(("num_batches_tracked", AVERAGE_COUNTER))
    }
    weight = sum(counted.values())
    if not 0 < weight <= largest:
        return None
    spelled = {shape: _spell(shape) for shape in set(shapes.values())}
    tensors = [_Tensor(key, spelled[shapes[key]], part) for key, part in counted.items()]
    bare = strip_wrappers(item.key for item in tensors if len(item.key) <= _LONGEST_KEY)
    return _File(
        prefix="",
        tensors={bare[item.key]: item for item in tensors if item.key in bare},
        others=[item for item in tensors if item.key not in bare],
        weight=weight,
    )


def _spell(shape: tuple[int, ...]) -> str:
    if len(shape) > _MOST_DIMS or any(not 0 <= size < _LARGEST_SIZE for size in shape):
        return _IMPOSSIBLE
    return ",".join(map(str, shape))


def _behind_prefix(file: _File, at_least: float) -> _File | None:
    """Return the file behind one more component, or None if no score can be that high there.

    What is not behind the component is unexpected, and that bounds the score. Hence there is at
    most one component to try.
    """
    weights: Counter[str] = Counter()
    for key, tensor in file.tensors.items():
        component, dot, _ = key.partition(".")
        if dot:
            weights[component] += tensor.weight
    if not weights:
        return None
    [(component, weight)] = weights.most_common(1)
    if weight < at_least * file.weight:
        return None
    start = f"{component}."
    inside = {key: item for key, item in file.tensors.items() if key.startswith(start)}
    return _File(
        prefix=file.prefix + start,
        tensors={key[len(start) :]: item for key, item in inside.items()},
        others=file.others + [item for key, item in file.tensors.items() if key not in inside],
        weight=file.weight,
    )


# --- Comparing -----------------------------------------------------------------------------------


class _Comparison(NamedTuple):
    """A signature of the table beside a file."""

    signature: int
    file: _File
    wanted: dict[str, str]
    """Shapes of the signature by key."""
    num_classes: int | None
    input_channels: int | None
    disagreeing: frozenset[str]
    """Keys of both with another shape."""
    score: float


def _compare_with_all(table: Table, file: _File) -> list[_Comparison]:
    """Return the comparisons with the signatures that the file can be of, from THRESHOLD up."""
    found: list[_Comparison] = []
    best = 0.0
    for signature, can_agree in _candidates(table, file)[:_MOST_COMPARED]:
        if best == 1 and not can_agree:
            continue
        comparison = _compare(signature, table.shapes(signature), file)
        best = max(best, comparison.score)
        if comparison.score >= THRESHOLD:
            found.append(comparison)
    return found


def _candidates(table: Table, file: _File) -> list[tuple[int, bool]]:
    """Return signatures, the likeliest first, and whether they can agree to the last tensor."""
    hits = table.hits(hash_of(key, item.shape) for key, item in file.tensors.items())
    estimates: list[tuple[float, int, bool]] = []
    for signature, count in hits.items():
        share = count / table.sampled[signature]
        weight = table.weights[signature]
        estimate = share * weight / (weight + file.weight - share * weight)
        if estimate >= THRESHOLD - _SLACK:
            # A file without a head is lighter than its model.
            estimates.append((-estimate, signature, share == 1 and weight >= file.weight))
    return [(signature, can_agree) for _, signature, can_agree in sorted(estimates)]


def _compare(signature: int, wanted: dict[str, str], file: _File) -> _Comparison:
    tensors = file.tensors
    num_classes = _solve("c", wanted, tensors)
    input_channels = _solve("i", wanted, tensors)
    agreed = total = in_both = 0
    disagreeing = set()
    for key, shape in wanted.items():
        weight = shape.count(",") + 1
        tensor = tensors.get(key)
        if tensor is None:
            total += weight if num_classes is not None or "c" not in shape else 0
            continue
        total += weight
        in_both += tensor.weight
        if tensor.shape == shape or tensor.shape == fill(shape, num_classes, input_channels):
            agreed += weight
        else:
            disagreeing.add(key)
    total += file.weight - in_both
    score = agreed / total
    return _Comparison(
        signature, file, wanted, num_classes, input_channels, frozenset(disagreeing), score
    )


def _solve(letter: str, wanted: dict[str, str], tensors: dict[str, _Tensor]) -> int | None:
    """Return the number for which a letter stands, by the vote of the tensors that depend on it."""
    votes: Counter[int] = Counter()
    for key, shape in wanted.items():
        if letter in shape and key in tensors:
            votes.update(_values(letter, shape, tensors[key].shape))
    return votes.most_common(1)[0][0] if votes else None


def _values(letter: str, shape: str, actual: str) -> list[int]:
    """Return the values of a letter in a shape that would make its sizes the actual ones."""
    wanted, found = shape.split(","), actual.split(",")
    if len(wanted) != len(found) or not found[0].isdigit():
        return []
    values = []
    for size, number in zip(wanted, found, strict=True):
        if letter in size:
            factor, _, constant = rule_of(size)
            value, rest = divmod(int(number) - constant, factor)
            values += [value] if value > 0 and rest == 0 else []
    return values


# --- The answer ----------------------------------------------------------------------------------


def _report(table: Table, compared: list[_Comparison]) -> tuple[ArchitectureMatch, ...]:
    found = [item for item in compared if not _is_guess(item)]
    best = max((item.score for item in found), default=0.0)
    ties = [item for item in found if item.score == best]
    below = sorted((item for item in found if item.score < best), key=lambda item: -item.score)
    matches: dict[str, ArchitectureMatch] = {}
    for item in ties + (below[:_MOST_RUNNERS_UP] if best < 1 else []):
        for name in table.names(item.signature):
            matches.setdefault(name, _match(name, item))
    return tuple(sorted(matches.values(), key=_rank))


def _is_whole(item: _Comparison) -> bool:
    """Whether the file has all of a model, but for its head perhaps."""
    tensors = item.file.tensors
    lacks = any(key not in tensors and "c" not in shape for key, shape in item.wanted.items())
    return not lacks and not item.disagreeing


def _is_guess(item: _Comparison) -> bool:
    """Whether something like a model is beside convolutions of something else.

    Whether that is the model with changes or another one is not certain.
    """
    return not _is_whole(item) and any(_num_dims(it) > _OF_A_LAYER for it in item.file.others)


def _is_part(item: _Comparison) -> bool:
    """Whether the file is a model, and more than another head for it."""
    inside = [it for key, it in item.file.tensors.items() if key not in item.wanted]
    beside = item.file.others
    is_more = any(_num_dims(it) >= _OF_A_LAYER for it in beside)
    return _is_whole(item) and (
        is_more or any(_num_dims(it) > _OF_A_LAYER for it in [*inside, *beside])
    )


_OF_A_LAYER = 2
"""Dimensions of a linear layer's weights, such as a head has; convolutions have more."""


def _num_dims(tensor: _Tensor) -> int:
    return tensor.shape.count(",") + 1


def _rank(match: ArchitectureMatch) -> tuple[float, bool, int, str]:
    """Return what the answer is sorted by; among equals the plainest name is the likeliest."""
    name = match.name
    return -match.score, not name.startswith("torchvision/"), len(name), name


def _match(name: str, item: _Comparison) -> ArchitectureMatch:
    file, wanted = item.file, item.wanted
    unexpected = [tensor for key, tensor in file.tensors.items() if key not in wanted]
    return ArchitectureMatch(
        name=name,
        score=item.score,
        num_classes=item.num_classes,
        input_channels=item.input_channels,
        missing=tuple(key for key in wanted if key not in file.tensors),
        unexpected=tuple(tensor.key for tensor in unexpected + file.others),
        mismatched=tuple(
            tensor.key for key, tensor in file.tensors.items() if key in item.disagreeing
        ),
        prefix=file.prefix,
        is_part=_is_part(item),
    )
