"""Saying to a person which architecture it is, and what weights can't tell."""

from __future__ import annotations

from collections.abc import Sequence

from torchkeep.identify.architectures.search import ArchitectureMatch

NOT_IN_WEIGHTS = (
    "which of the models that share all names and shapes it is",
    "activation functions",
    "strides, padding, dilation and pooling",
    "the number of attention heads",
    "dropout and stochastic depth",
    "the size of the input, unless a tensor depends on it",
    "how inputs are resized, cropped and normalised",
    "the names of the classes",
    "what the outputs are: logits, probabilities, an embedding",
)
"""What no name or shape of a tensor says about a model."""

_USUAL_CHANNELS = 3
_MOST_NAMES = 3


def best_of(matches: Sequence[ArchitectureMatch]) -> list[ArchitectureMatch]:
    """Return the matches that neither the weights nor the file's own words tell from the best."""
    return [
        match
        for match in matches
        if (match.score, match.named_by) == (matches[0].score, matches[0].named_by)
    ]


def in_words(matches: Sequence[ArchitectureMatch]) -> str:
    """Return the best of `recognise` as a part of a sentence; "" if there is none.

    "resnet18 for 10 classes". A difference is told, "resnet18 for 10 classes, but for 6 tensors",
    and so are ties: "resnet50 for 10 classes (or resnetaa50, resnetblur50)", unless the file says
    which it is: "resnet50 for 10 classes (by arch)". Of a larger network it is "contains resnet50
    under encoder". Models come without their library, since both libraries mean the same by most
    names.
    """
    if not matches:
        return ""
    best = matches[0]
    name, *others = dict.fromkeys(match.name.partition("/")[2] for match in best_of(matches))
    if len(others) > _MOST_NAMES:
        others = [f"{len(others)} of the same shapes"]
    notes = [f"or {', '.join(others)}"] if others else []
    notes += [f"by {best.named_by}"] if best.named_by else []
    told = f" ({'; '.join(notes)})" if notes else ""
    if best.is_part:
        return f"contains {name}{_numbers(best)}{told}{_place(best)}"
    return name + _numbers(best) + _differences(best) + told


def _place(match: ArchitectureMatch) -> str:
    """Return where in a larger network a model is."""
    if match.prefix:
        return f" under {match.prefix.removesuffix('.')}"
    return f" and {_count(len(match.unexpected), 'more tensor', 'more tensors')}"


def _numbers(match: ArchitectureMatch) -> str:
    parts = []
    if match.num_classes is not None:
        parts.append(_count(match.num_classes, "class", "classes"))
    if match.input_channels not in (None, _USUAL_CHANNELS):
        parts.append(_count(match.input_channels, "input channel", "input channels"))
    return f" for {' and '.join(parts)}" if parts else ""


def _differences(match: ArchitectureMatch) -> str:
    if match.score == 1:
        return " without its head" if match.missing else ""
    count = len(match.missing) + len(match.unexpected) + len(match.mismatched)
    return f", but for {_count(count, 'tensor', 'tensors')}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
