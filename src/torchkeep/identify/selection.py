"""Which of a file's state dicts is meant, and what is in it besides tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from torchkeep.contents import TensorEntry, Value, name_within
from torchkeep.errors import LoadMismatch
from torchkeep.formats.plain_json import json_or_text
from torchkeep.identify.inspection import Inspection
from torchkeep.identify.state_dicts import StateDict, state_dict_of_mapping
from torchkeep.identify.tree import children
from torchkeep.wording import counted


def choose(inspection: Inspection, select: str = "auto") -> tuple[StateDict, str]:
    """Return the state dict that is meant, and why in one sentence.

    Args:
        inspection: the file.
        select: `auto` for the only one or the model's; `ema` for the averaged one; or a name: the
            whole path in the file or its last part.

    Raises:
        FileProblem: the file is of a kind that no model can be read from.
        LoadMismatch: there is none, or it is not clear which; the candidates are listed.
    """
    found = inspection.state_dicts
    if not found and inspection.contents.problem is not None:
        raise inspection.contents.problem
    root = inspection.contents.root
    if not found and select == "auto" and _has_only_tensors(root):
        return state_dict_of_mapping("", root), "It is nothing but tensors by name."
    if not found:
        instead = inspection.summary.rstrip(".")
        raise LoadMismatch(
            f"{inspection.path}: there is no state dict in this file ({instead})",
            advice="Give a file that a model's state_dict() was saved to.",
        )
    if select == "auto":
        return _main(inspection, found)
    named = [item for item in found if item.name == select]
    named = named or [item for item in found if item.name.rpartition(".")[2] == select]
    if len(named) == 1:
        return named[0], f"{_called(named[0])} was asked for by name."
    if select == "ema" and not named:
        named = [item for item in found if item.role == "ema"]
        if len(named) == 1:
            return named[0], f"{_called(named[0])} is its only moving average."
    problem = "more than one state dict fits" if named else "no state dict is called"
    raise _unclear(inspection, f"{problem} select={select!r}")


def _has_only_tensors(root: Value) -> TypeGuard[dict[Value, Value]]:
    """Whether a file's root is a table of tensors, whose names alone don't tell of a model."""
    return (
        isinstance(root, dict)
        and bool(root)
        and all(isinstance(key, str) for key in root)
        and all(isinstance(item, TensorEntry) for item in root.values())
    )


def _main(inspection: Inspection, found: Sequence[StateDict]) -> tuple[StateDict, str]:
    if len(found) == 1:
        name = found[0].name
        return found[0], f"{name!r} is its only state dict." if name else "It is one state dict."
    models = [item for item in found if item.role == "model"]
    if len(models) > 1:
        models = list(_not_further_down(inspection, models))
    if len(models) == 1 and _is_from_one_of_several_files(inspection, found, models[0]):
        raise _unclear(inspection, "several files of it hold a state dict, and none is its model")
    if len(models) != 1:
        problem = f"the file has {len(found)} state dicts, and none is clearly the main one"
        raise _unclear(inspection, problem)
    others = ", ".join(_called(item) for item in found if item is not models[0])
    return models[0], f"{_called(models[0])} is the model's state dict, beside {others}."


def _not_further_down(inspection: Inspection, models: Sequence[StateDict]) -> Sequence[StateDict]:
    """Return the models in the files of the folder itself, if there are any, else all of them.

    A training leaves the model, and beside it a folder for each of its checkpoints.
    """
    files = [
        name
        for member in inspection.members
        if not member.members and "/" not in (name := name_within(inspection.path, member.path))
    ]
    outer = [item for item in models if any(f"{item.name}.".startswith(f"{n}.") for n in files)]
    return outer or models


def _is_from_one_of_several_files(
    inspection: Inspection, found: Sequence[StateDict], model: StateDict
) -> bool:
    """Whether other files beside the model's have state dicts, and its own isn't called a model."""
    holders = {
        file
        for member in inspection.members
        for file in (name_within(inspection.path, member.path),)
        if not member.members and "/" not in file and any(_is_within(it, file) for it in found)
    }
    return len(holders) > 1 and any(
        _is_within(model, file) and model.name != file for file in holders
    )


def _is_within(item: StateDict, file: str) -> bool:
    return f"{item.name}.".startswith(f"{file}.")


def _called(item: StateDict) -> str:
    return repr(item.name) if item.name else "the root"


def _unclear(inspection: Inspection, problem: str) -> LoadMismatch:
    rows = [
        f"  select={item.name!r}: {item.role}, {counted(item.num_tensors, 'tensor')}, "
        f"{counted(item.num_parameters, 'parameter')}"
        for item in inspection.state_dicts
    ]
    return LoadMismatch(
        f"{inspection.path}: {problem}", advice="Choose one of:\n" + "\n".join(rows)
    )


def all_values(inspection: Inspection, chosen: StateDict) -> dict[str, TensorEntry | Value]:
    """Return the state dict with its values that are no tensors, such as a module's extra state."""
    table = value_at(inspection.contents.root, chosen.name)
    if not isinstance(table, dict) or not chosen.entries.keys() <= table.keys():
        return dict(chosen.entries)  # a pickled module's: it has no table in the file
    return {**table, **chosen.entries}


def value_at(root: Value, path: str) -> Value:
    """Return what stands at a path as `identify` writes it; None if there is nothing.

    Keys may hold dots themselves, so each child whose name begins the path is tried.
    """
    if not path:
        return root
    for name, child in children(root):
        if name == path:
            return child
        if path.startswith(f"{name}."):
            found = value_at(child, path[len(name) + 1 :])
            if found is not None:
                return found
    return None


_CLASS_LISTS = ("classes", "class_names", "names", "labels", "id2label", "idx_to_class")
_CLASS_INDEXES = ("class_to_idx", "label2id")


def class_names(inspection: Inspection) -> tuple[str, ...]:
    """Return what the outputs of the file's classifier are called, in order, if it is said.

    Looked for are a list of names or a table of numbers, under the usual keys, among the file's
    values and in its metadata.
    """
    values = {path.rpartition(".")[2]: value for path, value in inspection.values.items()}
    metadata = inspection.metadata
    keys = [key for key in (*_CLASS_LISTS, *_CLASS_INDEXES) if key in metadata]
    values |= {key: json_or_text(metadata[key]) for key in keys}
    for key in _CLASS_LISTS:
        names = _in_order(values.get(key))
        if names:
            return names
    for key in _CLASS_INDEXES:
        table = values.get(key)
        if isinstance(table, dict):
            names = _in_order({number: name for name, number in table.items()})
            if names:
                return names
    return ()


def _in_order(value: Value) -> tuple[str, ...]:
    """Return texts given as a list or by their numbers from 0 on; empty if they are neither."""
    if isinstance(value, dict):
        numbered = {str(key): item for key, item in value.items()}
        value = [numbered.get(str(number)) for number in range(len(value))]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return ()
    return tuple(value) if len(set(value)) == len(value) else ()
