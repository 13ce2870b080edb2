"""Optimizers, schedulers and gradient scalers, recognised by the keys of their state.

Source: the `state_dict()` of torch/optim/*.py, torch/optim/lr_scheduler.py,
torch/amp/grad_scaler.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchkeep.contents import Object, TensorEntry, Value
from torchkeep.identify.tree import Budget, named_tensors


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer's state in the file."""

    name: str
    """Its path in the file; empty if it is the file's root."""
    family: str | None
    """The class whose options it has, such as `SGD`; None if unknown."""
    param_groups: tuple[dict[str, Value], ...]
    """The options of each group, with `num_params` in place of the list of parameters."""
    num_states: int
    """Parameters that have a state."""
    nbytes: int
    """Bytes of the tensors in the state."""


_FAMILIES: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("LBFGS", frozenset({"max_eval", "history_size"}), frozenset()),
    ("Adadelta", frozenset({"rho"}), frozenset()),
    ("Adagrad", frozenset({"lr_decay"}), frozenset()),
    ("ASGD", frozenset({"lambd", "t0"}), frozenset()),
    ("Rprop", frozenset({"etas", "step_sizes"}), frozenset()),
    ("RMSprop", frozenset({"alpha", "centered"}), frozenset()),
    ("Adafactor", frozenset({"beta2_decay"}), frozenset()),
    ("Adafactor", frozenset({"scale_parameter", "relative_step"}), frozenset()),
    ("Muon", frozenset({"ns_steps"}), frozenset()),
    ("NAdam", frozenset({"betas", "momentum_decay"}), frozenset()),
    ("Adamax", frozenset({"betas"}), frozenset({"exp_inf"})),
    ("Adam or AdamW", frozenset({"betas", "amsgrad"}), frozenset()),
    ("SGD", frozenset({"momentum", "dampening", "nesterov"}), frozenset()),
    ("RAdam", frozenset({"betas", "decoupled_weight_decay"}), frozenset()),
    ("Lion", frozenset({"betas"}), frozenset({"exp_avg"})),
)
"""Class, options that give it away, state that gives it away; the first match counts."""


def is_optimizer(value: Value) -> bool:
    """Whether a value is an optimizer's state dict, or a pickled optimizer."""
    table = _table(value)
    groups = table.get("param_groups")
    return (
        isinstance(groups, list)
        and isinstance(table.get("state"), dict)
        and all(isinstance(group, dict) and "params" in group for group in groups)
    )


def optimizer(name: str, value: Value, budget: Budget) -> Optimizer:
    """Return what an optimizer's state says. `is_optimizer` holds for `value`."""
    table = _table(value)
    state = table["state"]
    tensors = named_tensors(state, budget)
    unique = {item.entry.memory: item.entry.nbytes for item in tensors}
    return Optimizer(
        name=name,
        family=_family(value, table["param_groups"], state),
        param_groups=tuple(_group(group) for group in table["param_groups"]),
        num_states=len(state),
        nbytes=sum(unique.values()),
    )


def _table(value: Value) -> dict[Value, Value]:
    if isinstance(value, Object):
        return value.attributes
    return value if isinstance(value, dict) else {}


def _group(group: dict[Value, Value]) -> dict[str, Value]:
    params = group["params"]
    num_params = len(params) if isinstance(params, list | tuple | set) else 1
    options = {str(key): item for key, item in group.items() if key != "params"}
    return {**options, "num_params": num_params}


def _family(value: Value, groups: list[Value], state: dict[Value, Value]) -> str | None:
    if isinstance(value, Object):
        return value.class_path.rpartition(".")[2]
    options = {key for group in groups for key in group if isinstance(key, str)}
    slots = next((set(item) for item in state.values() if isinstance(item, dict)), set())
    for family, needed, needed_slots in _FAMILIES:
        if needed <= options and needed_slots <= slots:
            return _adam(groups) if family == "Adam or AdamW" else family
    return None


def _adam(groups: list[Value]) -> str:
    """Return which of the two it is. Only newer releases of PyTorch write the difference."""
    decoupled = groups[0].get("decoupled_weight_decay")
    if not isinstance(decoupled, bool):
        return "Adam or AdamW"
    return "AdamW" if decoupled else "Adam"


def is_scheduler(value: Value) -> bool:
    """Whether a value is a learning-rate scheduler's state dict, or a pickled scheduler."""
    table = _table(value)
    return "last_epoch" in table and bool({"_step_count", "_last_lr", "base_lrs"} & set(table))


def is_scaler(value: Value) -> bool:
    """Whether a value is the state dict of a `GradScaler`."""
    return isinstance(value, dict) and {"scale", "growth_factor", "backoff_factor"} <= set(value)


def is_rng_state(name: str, value: Value) -> bool:
    """Whether a value with this key is a random generator's state."""
    key = name.lower()
    if "rng" not in key and "random_state" not in key:
        return False
    return isinstance(value, TensorEntry | tuple | list | dict | Object)
