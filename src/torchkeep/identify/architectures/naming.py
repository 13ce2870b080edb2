"""What a file itself says about the architecture: a class's path, or a value such as `arch`.

Weights can't tell models that share all names and shapes; whoever saved them often wrote down which
one it is. That breaks ties, and never more: what the tensors say counts first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchkeep.identify.architectures.search import ArchitectureMatch

_LIBRARIES = ("torchvision", "timm")
_KEYS = frozenset(
    "arch architecture arch_name model_arch model_name model backbone encoder encoder_name "
    "network net".split()
)
"""Last names of values that name a model: timm's `arch`, hyper-parameters, a `config.json`."""
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Naming:
    """One thing that a file says about its architecture."""

    source: str
    """Where it says so: "its class", or the path of a value."""
    library: str = ""
    """`torchvision` or `timm`; empty if it does not say."""
    model: str = ""
    """The library's name of the model; empty if it does not say."""

    def fits(self, match: ArchitectureMatch) -> bool:
        """Whether it can be said of a match."""
        library, _, model = match.name.partition("/")
        return self.library in ("", library) and self.model in ("", model.partition("(")[0])


def named_by_class(class_path: str) -> Iterator[Naming]:
    """Yield what the class of a pickled model says: whose library it is from."""
    library = class_path.partition(".")[0]
    if library in _LIBRARIES:
        yield Naming("its class", library)


def named_by_values(values: Mapping[str, Any], framework: str | None) -> Iterator[Naming]:
    """Yield what the values of a file say.

    Args:
        values: the plain values by path.
        framework: what wrote the file; timm's own checkpoints name models of timm.
    """
    for path, value in values.items():
        is_name = isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME
        if is_name and path.rpartition(".")[2] in _KEYS:
            library, model = _parse(value)
            yield Naming(path, library or ("timm" if framework == "timm" else ""), model)


def _parse(text: str) -> tuple[str, str]:
    """Return the library, if it is said, and the model of a name.

    >>> _parse("hf_hub:timm/resnet50.a1_in1k"), _parse("ResNet50"), _parse("torchvision.vgg16-bn")
    (('timm', 'resnet50'), ('', 'resnet50'), ('torchvision', 'vgg16_bn'))
    """
    name = text.lower().rpartition(":")[2].replace("-", "_")
    for library in _LIBRARIES:
        if name.startswith((f"{library}/", f"{library}.")):
            return library, name[len(library) + 1 :].partition(".")[0]
    return "", name.partition(".")[0]


def prefer(
    matches: Sequence[ArchitectureMatch], namings: Iterable[Naming]
) -> tuple[ArchitectureMatch, ...]:
    """Return matches with those of the best first that the file itself names.

    Args:
        matches: what `recognise` gives.
        namings: what the file says; one that fits none of what is left is passed over.
    """
    best = [match for match in matches if match.score == matches[0].score]
    chosen, sources = best, dict[str, None]()
    for naming in namings:
        fitting = [match for match in chosen if naming.fits(match)]
        if fitting and len(fitting) < len(chosen):
            chosen, sources = fitting, {**sources, naming.source: None}
    if not sources:
        return tuple(matches)
    named = [replace(match, named_by=" and ".join(sources)) for match in chosen]
    return (*named, *(match for match in matches if match not in chosen))
