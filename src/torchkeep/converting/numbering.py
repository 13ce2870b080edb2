"""The state of an optimizer in a distributed checkpoint, by numbers again.

PyTorch writes the keys of a checkpoint as texts, so that the `state` of a plain
`optimizer.state_dict()` has "0" where it had 0. `Optimizer.load_state_dict` of such a state raises
nothing, and restores nothing. Which numbers are meant stands in `param_groups`.
"""

from __future__ import annotations

from torchkeep.contents import Value
from torchkeep.identify import Inspection
from torchkeep.identify.selection import value_at


def renumber(inspection: Inspection) -> list[str]:
    """Make numbers of the keys of each optimizer's state that were some.

    Returns:
        A sentence for each optimizer that was changed.
    """
    notes = []
    if inspection.container == "dcp":
        for optimizer in inspection.optimizers:
            if _renumber(value_at(inspection.contents.root, optimizer.name)):
                name = f"{optimizer.name}.state" if optimizer.name else "state"
                notes.append(f"The keys of {name!r} are numbers again, as its 'params' are.")
    return notes


def _renumber(optimizer: Value) -> bool:
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    numbers = {str(number): number for number in _params(optimizer)}
    if type(state) is not dict or not state or not all(key in numbers for key in state):
        return False
    items = [(numbers[key], item) for key, item in state.items()]
    state.clear()  # in its place, since what refers to it goes by what it is
    state.update(items)
    return True


def _params(optimizer: Value) -> list[int]:
    """Return the numbers that an optimizer's groups give to their parameters."""
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    found: list[int] = []
    for group in groups if isinstance(groups, list) else ():
        params = group.get("params") if isinstance(group, dict) else None
        found += [it for it in params if type(it) is int] if isinstance(params, list) else []
    return found
