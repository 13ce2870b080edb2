"""What a file is, as a role and as one sentence for a person."""

from __future__ import annotations

from torchkeep.contents import Contents, DictObject, Object, TensorEntry, Value
from torchkeep.identify.frameworks import is_training_state
from torchkeep.identify.inspection import FileRole
from torchkeep.identify.json_form import describe_value, jsonable
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.survey import Survey
from torchkeep.matching.keys import WRAPPERS, wrappers_in

_PROGRESS = ("epoch", "epochs", "global_step", "step", "iteration", "iter")
"""Root values that say how far a training run got, in the order of preference."""


def role_of(contents: Contents, found: Survey) -> FileRole:
    """Return what a file is used for."""
    root = contents.root
    if isinstance(root, TensorEntry):
        return "tensor"
    if is_training_state(contents):
        return "optimizer"
    if any(path == "" for path, _ in found.modules):
        return "module"
    if any(item.name == "" for item in found.state_dicts):
        return "state_dict"
    if any(item.name == "" for item in found.optimizers):
        return "optimizer"
    if found.state_dicts:
        return "checkpoint"
    if found.optimizers:
        return "optimizer"
    return "unknown" if root is None else "object"


def summarise(role: FileRole, contents: Contents, found: Survey) -> str:
    """Return the sentence."""
    root = contents.root
    if role == "tensor":
        return f"One tensor: {root.dtype}, shape {list(root.shape)}."
    if is_training_state(contents):
        return f"Training state without the model: {len(root)} tensors of a torchkeep checkpoint."
    if role == "optimizer":
        return f"Optimizer state without a model: {_optimizers(found)}."
    if role in ("object", "unknown"):
        return f"No model: {_object(root)}."
    main = main_state_dict(found)
    model = f"{main.num_parameters:,} parameters in {main.num_tensors:,} tensors"
    saved_from = _saved_from(main)
    if role == "state_dict":
        return f"Parameters only: {model}{saved_from}."
    if role == "module":
        return f"Whole model: {found.modules[0][1].class_path}, {model}{saved_from}."
    start = "Training checkpoint" if found.optimizers else "Checkpoint without optimizer"
    details = [model, *_checkpoint_details(found, main)]
    return f"{start}: {', '.join(details)}{saved_from}."


def main_state_dict(found: Survey) -> StateDict:
    """Return the state dict that the file is about: the model's, else the largest."""
    for wanted in ("model", "other", "ema"):
        candidates = [item for item in found.state_dicts if item.role == wanted]
        if candidates:
            return max(candidates, key=lambda item: item.num_parameters)
    raise ValueError("the file has no state dict")


def _checkpoint_details(found: Survey, main: StateDict) -> list[str]:
    details = []
    if len(found.state_dicts) > 1:
        details.append(f"{len(found.state_dicts)} state dicts")
    whole = [node.class_path for path, node in found.modules if path == main.name]
    details += [f"the whole {class_path}" for class_path in whole]
    if found.optimizers:
        details.append(_optimizers(found))
    if found.schedulers:
        details.append("scheduler")
    for name in _PROGRESS:
        value = found.values.get(name)
        if isinstance(value, int):
            details.append(f"{'epoch' if name == 'epochs' else name} {jsonable(value)}")
            break
    if any(item.role == "ema" for item in found.state_dicts):
        details.append("EMA")
    return details


def _optimizers(found: Survey) -> str:
    return " and ".join(item.family or "an optimizer" for item in found.optimizers)


def _saved_from(main: StateDict) -> str:
    wrappers = [WRAPPERS[name] for name in wrappers_in(main.entries)]
    return f"; saved from {' in '.join(reversed(wrappers))}" if wrappers else ""


def _object(root: Value) -> str:
    if isinstance(root, Object):
        return f"an object of {root.class_path}"
    if isinstance(root, DictObject):
        return f"a {root.class_path} of {len(root)}"
    if isinstance(root, dict | list | tuple | set | frozenset):
        return f"a {type(root).__name__} of {len(root):,}"
    if isinstance(root, str | int | float | bool | None):
        return f"the value {jsonable(root)!r}"[:80]
    return describe_value(root).strip("<>")
