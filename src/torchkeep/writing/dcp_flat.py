"""A nested state dict as a distributed checkpoint has it: flat, with the way to each value.

Mappings are taken apart, and lists that have a tensor or a mapping in them, at any depth. All else
is a value by itself: tensors, numbers, lists of these, tuples with whatever is in them. Keys become
texts, and a mapping without items leaves no trace; `Flat.shape` has what is lost so.

Source: torch/distributed/checkpoint/_nested_dict.py, _traverse.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import SaveRefused
from torchkeep.formats.folders.dcp_nest import Shape, Way


@dataclass(slots=True)
class Flat:
    """A state dict, flat."""

    values: dict[str, Value] = field(default_factory=dict)
    """Its values by key: the parts of their paths, joined by dots."""
    paths: dict[str, Way] = field(default_factory=dict)
    """The path of each."""
    empty: list[Way] = field(default_factory=list)
    """Mappings that leave no trace."""
    numbered: list[Way] = field(default_factory=list)
    """Mappings whose keys are whole numbers."""
    renamed: list[Way] = field(default_factory=list)
    """Mappings of which some keys are neither texts nor such numbers, or not all of one kind."""

    @property
    def shape(self) -> Shape:
        """What PyTorch does not keep of it."""
        return Shape(tuple(self.empty), tuple(self.numbered))


def flatten(root: Value) -> Flat:
    """Return a nested state dict, flat.

    Raises:
        SaveRefused: it is no mapping, two values have one key, or it contains itself.
    """
    if not isinstance(root, dict):
        raise SaveRefused(
            "a distributed checkpoint has values by name, and this is none",
            advice="Choose a state dict with select (--select), or another format.",
        )
    flat = Flat()
    try:
        _visit(root, (), flat)
    except RecursionError:
        raise SaveRefused("the values are nested too deeply, or contain themselves") from None
    return flat


def _visit(value: Value, path: Way, flat: Flat) -> None:
    items: list[tuple[str | int, Value]]
    if isinstance(value, dict):
        if value and all(type(key) is int for key in value):
            flat.numbered.append(path)
        elif not all(isinstance(key, str) for key in value):
            flat.renamed.append(path)
        items = [(str(key), item) for key, item in value.items()]
    elif _is_taken_apart(value):
        items = list(enumerate(value))
    else:
        _add(value, path, flat)
        return
    if not items and path:
        flat.empty.append(path)
    for part, item in items:
        _visit(item, (*path, part), flat)


def _add(value: Value, path: Way, flat: Flat) -> None:
    key = key_of(path)
    if key in flat.values:
        raise SaveRefused(
            f"two values would be called {key!r}", advice="Rename one of them, or leave it out."
        )
    flat.values[key] = value
    flat.paths[key] = path


def _is_taken_apart(value: Value) -> bool:
    """Whether a value is a list with a tensor or a mapping in it, at any depth."""
    return isinstance(value, list) and any(
        isinstance(item, dict | TensorEntry) or _is_taken_apart(item) for item in value
    )


def key_of(path: Way) -> str:
    """Return the flat key of a value."""
    return ".".join(map(str, path))
