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
_MOST_NAMES = 2


def in_words(matches: Sequence[ArchitectureMatch]) -> str:
    """Return the best of `recognise` as a part of a sentence; "" if there is none.

    "resnet18 for 10 classes"; ties are told: "resnet50 or resnetaa50", "resnet50 or one of 2
    like it"; so is a difference: "resnet18 for 10 classes, but for 6 tensors". The model comes
    without its library, since the two mostly mean the same by a name.
    """
    if not matches:
        return ""
    best = matches[0]
    ties = [match.name.partition("/")[2] for match in matches if match.score == best.score]
    names = list(dict.fromkeys(ties))
    if len(names) > _MOST_NAMES:
        names = [names[0], f"one of {len(names) - 1} like it"]
    return " or ".join(names) + _numbers(best) + _differences(best)


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
