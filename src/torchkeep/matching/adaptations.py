"""What may be done to a tensor that doesn't fit as it is. Nothing is done unless it is asked for.

Here is which adaptation fits which tensor, and with what numbers; `loading.adapting` computes. To
add one, add an entry to `ADAPTATIONS`, its function there, and its tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

from torchkeep.contents import ITEM_SIZE, TensorEntry
from torchkeep.matching.slots import ANY_DTYPE, Slot


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adaptation as it is applied to one tensor."""

    name: str
    """Its key in `ADAPTATIONS`."""
    text: str
    """What it does to this tensor, for a person: `float16 to float32`."""
    arguments: tuple[Any, ...] = ()
    """The numbers that the computation needs."""
    num_kept: int = 0
    """Elements of the place that stay the model's own."""

    def __str__(self) -> str:
        return f"{self.name} ({self.text})"


@dataclass(frozen=True, slots=True)
class ClassNames:
    """What the outputs of a classifier stand for, on both sides."""

    file: tuple[str, ...] = ()
    """The file's class names, in the order of its outputs; empty if they are not known."""
    model: tuple[str, ...] = ()
    """The model's."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """A named way to make a file's tensor fit a place in the model."""

    what: str
    """What it does, for a person."""
    fit: Callable[[TensorEntry, Slot, ClassNames], Adapted | None]
    """How it makes this tensor fit this place; None if it doesn't."""
    usual_names: str = ""
    """A regular expression that finds the tensors that it is meant for, where their shapes alone
    don't tell. Who asks for it by a pattern of keys is not asked for this."""


SKIP = "skip"
"""The name of leaving a place of the model, or a key of the file, alone."""

RESET = "reset"
"""The name of having a place's module make fresh values with its own `reset_parameters`."""


# --- Dtypes --------------------------------------------------------------------------------------

_FAMILIES = ("float", "bfloat", "complex", "uint", "int", "bool")


def _family(dtype: str) -> str:
    """Return what kind of number a dtype has: a float never becomes an integer by a cast."""
    family = next((name for name in _FAMILIES if dtype.startswith(name)), dtype)
    return {"bfloat": "float", "uint": "int"}.get(family, family)


def _cast(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    if entry.dtype == slot.dtype or _family(entry.dtype) != _family(slot.dtype):
        return None
    return Adapted("cast", f"{entry.dtype} to {slot.dtype}", (slot.dtype,))


# --- Classifiers ---------------------------------------------------------------------------------


def _differ_in(entry: TensorEntry, slot: Slot, dim: int) -> bool:
    """Whether the shapes differ in one dimension alone."""
    one, other = list(entry.shape), list(slot.shape)
    if len(one) != len(other) or len(one) <= dim or one[dim] == other[dim]:
        return False
    del one[dim], other[dim]
    return one == other


def _slice(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    if not _differ_in(entry, slot, 0):
        return None
    old, new = entry.shape[0], slot.shape[0]
    taken = min(old, new)
    return Adapted(
        "slice",
        f"the first {taken} of {old} rows",
        (taken,),
        num_kept=(new - taken) * prod(slot.shape[1:]),
    )


def _by_class(entry: TensorEntry, slot: Slot, classes: ClassNames) -> Adapted | None:
    if not entry.shape or not slot.shape or entry.shape[1:] != slot.shape[1:]:
        return None
    if entry.shape[0] != len(classes.file) or slot.shape[0] != len(classes.model):
        return None
    number = {name: row for row, name in enumerate(classes.file)}
    rows = tuple((new, number[name]) for new, name in enumerate(classes.model) if name in number)
    if not rows:
        return None
    num_new = len(classes.model) - len(rows)
    text = f"{len(rows)} of {len(classes.file)} rows by class name"
    return Adapted("classes", text, rows, num_kept=num_new * prod(slot.shape[1:]))


# --- Input channels ------------------------------------------------------------------------------


def _is_stem(entry: TensorEntry, slot: Slot) -> bool:
    """Whether both can be the kernel of a convolution, [out, in, ...], for other input channels."""
    return len(entry.shape) >= 3 and _differ_in(entry, slot, 1) and min(entry.shape[1:]) > 0


def _sum_channels(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    if not _is_stem(entry, slot) or slot.shape[1] != 1:
        return None
    return Adapted("sum-channels", f"{entry.shape[1]} input channels added up")


def _repeat_channels(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    if not _is_stem(entry, slot):
        return None
    old, new = entry.shape[1], slot.shape[1]
    return Adapted("repeat-channels", f"{old} input channels repeated to {new}, scaled", (new,))


def _average_channels(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    if not _is_stem(entry, slot):
        return None
    old, new = entry.shape[1], slot.shape[1]
    return Adapted("average-channels", f"{new} times the mean of {old} input channels", (new,))


# --- Positions -----------------------------------------------------------------------------------

_MOST_EXTRA = 8
"""Rows of a table of positions that stand for no place: class, distillation, register tokens."""


def _resample(entry: TensorEntry, slot: Slot, _classes: ClassNames) -> Adapted | None:
    """Return how a table of positions is resized.

    Tables are [1, T, D] or [T, D] with a square grid among the T, [1, D, H, W], or [1, H, W, D].
    Tokens that stand for no place come first, as vision transformers have them, or for relative
    biases ([(2h-1)(2w-1) + 3, heads] of BEiT) last; they are kept.
    """
    old, new = entry.shape, slot.shape
    if len(old) != len(new) or old == new or min((*old, *new), default=0) < 1:
        return None
    if len(old) == 4 and old[0] == new[0] == 1:
        if old[1] == new[1]:
            return _resized(old[2:], new[2:], 0, layout="channels first")
        if old[3] == new[3]:
            return _resized(old[1:3], new[1:3], 0, layout="channels last")
        return None
    if len(old) not in (2, 3) or old[-1] != new[-1] or (len(old) == 3 and old[0] != new[0]):
        return None
    for extra in range(_MOST_EXTRA + 1):
        one, other = _side(old[-2] - extra), _side(new[-2] - extra)
        if one and other:
            is_bias = len(old) == 2 and extra == 3 and one % 2 == other % 2 == 1
            layout = "biases" if is_bias else "tokens"
            return _resized((one, one), (other, other), extra, layout=layout)
    return None


def _side(number: int) -> int:
    """Return the side of a square of that many places; 0 if there is none."""
    side = isqrt(max(number, 0))
    return side if side * side == number else 0


def _resized(old: tuple[int, ...], new: tuple[int, ...], extra: int, *, layout: str) -> Adapted:
    sizes = " to ".join("x".join(map(str, size)) for size in (old, new))
    text = f"a grid of {sizes}" + (f", {extra} extra kept" if extra else "")
    return Adapted("resample", text, (old, new, extra, layout))


_POSITIONS = r"pos(ition(al)?)?_?(emb|enc|bias)|relative_position_bias_table|\bpos\b"

ADAPTATIONS: dict[str, Adaptation] = {
    "classes": Adaptation("the rows of classes with the same names are taken", _by_class),
    "slice": Adaptation("as many of the first rows are taken as both have", _slice),
    "sum-channels": Adaptation("kernels of all input channels are added up to one", _sum_channels),
    "repeat-channels": Adaptation(
        "input channels are repeated, and scaled so that sums stay the same", _repeat_channels
    ),
    "average-channels": Adaptation(
        "every input channel gets the mean, scaled so that sums stay the same", _average_channels
    ),
    "resample": Adaptation(
        "a table of positions is resized to another grid (bicubic)", _resample, _POSITIONS
    ),
    "cast": Adaptation("the values are converted to the model's dtype", _cast),
}
"""Every adaptation of a tensor by name, in the order in which they are tried."""

NAMES: dict[str, str] = {name: item.what for name, item in ADAPTATIONS.items()} | {
    SKIP: "the model keeps what it has, or what the file has is not used",
    RESET: "the module's own reset_parameters() gives fresh values",
}
"""Every name that may be asked for, and what it does."""


def adapt(
    entry: TensorEntry,
    slot: Slot,
    names: Sequence[str],
    classes: ClassNames,
    called: str | None = None,
) -> tuple[Adapted, ...] | None:
    """Return what makes a tensor fit a place: nothing, one adaptation, a cast, or both.

    The cast comes where it loses least: last if it makes elements smaller, else first.

    Args:
        entry: the file's tensor.
        slot: the model's place.
        names: the adaptations that may be used.
        classes: what the outputs are called.
        called: the place's name, if adaptations are to be used only where their names are usual.

    Returns:
        The adaptations in order; None if no allowed one helps.
    """
    steps: list[Adapted] = []
    for name in names:
        if name not in ADAPTATIONS or name == "cast" or not _is_usual(name, called):
            continue
        step = ADAPTATIONS[name].fit(entry, slot, classes)
        if step is not None:
            steps.append(step)
            break
    if not steps and entry.shape != slot.shape:
        return None
    if slot.dtype not in (entry.dtype, ANY_DTYPE):
        cast = _cast(entry, slot, classes) if "cast" in names else None
        if cast is None:
            return None
        is_narrower = ITEM_SIZE.get(slot.dtype, 0) < ITEM_SIZE.get(entry.dtype, 0)
        steps.insert(len(steps) if is_narrower else 0, cast)
    return tuple(steps)


def _is_usual(name: str, called: str | None) -> bool:
    pattern = ADAPTATIONS[name].usual_names
    return called is None or not pattern or re.search(pattern, called) is not None
