"""One state dict of a file by itself, and what becomes of everything else in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass

from torchkeep.comparing.leaves import leaves
from torchkeep.contents import Array, TensorEntry, Value, child_path
from torchkeep.formats.own.metadata import FACTS, RESERVED
from torchkeep.identify import Inspection, StateDict
from torchkeep.identify.selection import all_values, value_at
from torchkeep.identify.survey import PLAIN
from torchkeep.identify.tree import Budget
from torchkeep.identify.user_metadata import CONVERTED_FROM
from torchkeep.matching.tied import tied_names
from torchkeep.writing.safetensors import is_utf8

_LONGEST_TEXT = 1 << 20
"""Characters of a value that is kept in the metadata; a header is read as a whole."""


@dataclass(frozen=True, slots=True)
class Flat:
    """A state dict, and the rest of its file."""

    entries: dict[str, TensorEntry]
    """Its tensors by key, those of tied names included."""
    texts: dict[str, str]
    """The plain values of the file by path, as texts or JSON."""
    left_out: tuple[str, ...]
    """What is neither."""


def flat(inspection: Inspection, chosen: StateDict) -> Flat:
    """Return a state dict of a file by itself."""
    values = all_values(inspection, chosen)
    entries = {key: item for key, item in values.items() if isinstance(item, TensorEntry)}
    tied = tied_names(inspection.contents)
    entries |= {name: entries[kept] for name, kept in tied.items() if kept in entries}
    plain = dict(inspection.values)
    for key, item in values.items():  # what a module keeps as extra state
        if not isinstance(item, TensorEntry | Array):
            plain[child_path(chosen.name, key)] = item
    texts = {path: text for path, item in plain.items() if (text := _text(item)) is not None}
    taken = {*entries, *FACTS, CONVERTED_FROM}
    texts = {k: v for k, v in texts.items() if k not in taken and not k.startswith(RESERVED)}
    left_out = [*_parts(inspection, chosen), *(path for path in plain if path not in texts)]
    left_out += _rest(inspection, chosen, {*left_out, *plain})
    return Flat(entries, texts, tuple(left_out))


def _text(value: Value) -> str | None:
    """Return a plain value as metadata has it; None if it is none, or too long."""
    if not _is_json(value):
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_TEXT and is_utf8(text) else None


def _is_json(value: Value, depth: int = 3) -> bool:
    """Whether JSON has a value, and gives it back the same."""
    if isinstance(value, float):
        return value - value == 0  # finite
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(key, str) and _is_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_json(item, depth - 1) for item in value)
    return isinstance(value, PLAIN) and not isinstance(value, complex)


def _parts(inspection: Inspection, chosen: StateDict) -> Iterator[str]:
    """Yield the paths of the parts of a file that have a meaning of their own."""
    yield from (item.name for item in inspection.state_dicts if item is not chosen)
    yield from (item.name for item in inspection.optimizers)
    yield from (*inspection.schedulers, *inspection.scalers, *inspection.rng)


def _rest(inspection: Inspection, chosen: StateDict, told_of: Set[str]) -> Iterator[str]:
    """Yield the paths of what is in none of the parts, and is no value: loose tensors, bytes."""
    root = inspection.contents.root
    budget = Budget.for_contents(inspection.contents, inspection.limits)
    for path in leaves(root, budget, skipped={id(value_at(root, chosen.name))}):
        ends = [place for place, letter in enumerate(path) if letter == "."]
        if not any(path[:end] in told_of for end in (*ends, len(path))):
            yield path
