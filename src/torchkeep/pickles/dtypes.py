"""NumPy dtypes as pickles hold them, and whether what a pickle says of one can be true.

A dtype is `dtype("V12", False, True)` with a state set on it: `(version, byte order, (base, shape)
of an array in each element, names, {name: (dtype, offset[, title])}, size, alignment, flags)`.
NumPy believes the state. One that denies that the elements are Python objects, that makes them
larger than the bytes behind them, or that changes a dtype which an array has already, makes
addresses out of numbers that the file chooses.

Source: `arraydescr_reduce` and `arraydescr_setstate` in NumPy's _core/src/multiarray/descriptor.c.
"""

from __future__ import annotations

import re
from math import prod

from torchkeep.contents import Finding, Global, Object, Value

_CLASS_PATH = "numpy.dtype"
_CODE = re.compile(r"[<>|=]?([biufcSUVmMO])([0-9]{1,9})")
_SIZED, _ORDERLESS = "SUV", "SVO"
"""Kinds of which the state tells the size, and kinds that have no byte order."""
_OBJECT_FLAGS = 0b11
"""Elements are counted references, and are pickled as a list."""
_NUM_OLDEST, _NUM_FLAGGED = 7, 8
"""Items of a state without flags, which NumPy up to 1.0 wrote, and of one with them."""
_MOST_DIMENSIONS = 64
_MOST_FIELDS = 1_000_000


class Dtypes:
    """The dtypes of one pickle, checked when their state is set and once more at the end.

    Attributes:
        findings: what is wrong with them.
    """

    def __init__(self) -> None:
        self.findings: dict[Finding, None] = {}
        self._records: list[tuple[tuple[Value, ...], int, bool]] = []
        self._num_fields = 0

    def see(self, target: Value, state: Value) -> None:
        """Look at a state before it is set on something, which may be a dtype."""
        if not isinstance(target, Object) or target.class_path != _CLASS_PATH:
            return
        code = target.args[0] if target.args else None
        if isinstance(code, Global) and code.module != "builtins":
            return  # of a class of somebody else's, which needs trust anyway
        flaw = self._flaw(target, state)
        if flaw:
            self._note(flaw)

    def finish(self) -> None:
        """Look at the records again: NumPy keeps the very dictionary that a state has."""
        for state, nbytes, has_objects in self._records:
            if self._look_inside(state, nbytes) != has_objects:
                self._note("has parts that are changed after it was made")

    def _note(self, flaw: str) -> None:
        text = f"a NumPy dtype {flaw}: its arrays would reach into foreign memory"
        self.findings[Finding("numpy-dtype", "dangerous", "", text)] = None

    def _flaw(self, dtype: Object, state: Value) -> str:
        """Return what is wrong with a state; empty if nothing."""
        if dtype.state is not None:
            return "is changed after it was made"
        found = _parse_code(dtype)
        if found is None or dtype.kwargs:
            return "is made of something that NumPy does not write"
        if not isinstance(state, tuple) or len(state) < _NUM_OLDEST:
            return "has a state that NumPy does not write"
        kind, nbytes = found
        if kind in _SIZED and state[5] != nbytes:
            return "is given another size than its own"
        if kind in _ORDERLESS and state[1] != "|":
            return "is given a byte order, and has none"
        has_objects = self._look_inside(state, nbytes)
        if has_objects is None:
            return "has parts that do not fit into it"
        if len(state) >= _NUM_FLAGGED and _says_objects(state) != (has_objects or kind == "O"):
            return "does not say what its elements are"
        if state[4] is not None:
            self._records.append((state, nbytes, has_objects))
        if has_objects:
            text = "a NumPy record has Python objects in it, which NumPy puts where the file says"
            self.findings[Finding("numpy-record", "needs-trust", "", text)] = None
        return ""

    def _look_inside(self, state: tuple[Value, ...], nbytes: int) -> bool | None:
        """Return whether there are objects in the parts of a dtype; None if one does not fit."""
        array, fields = state[2], state[4]
        parts = [] if array is None else [_array_in(array, nbytes)]
        if isinstance(fields, dict):
            self._num_fields += len(fields)
            if self._num_fields > _MOST_FIELDS:
                return None
            parts += [_field_in(field, nbytes) for field in fields.values()]
        elif fields is not None:
            return None
        return None if None in parts else any(parts)


def _parse_code(dtype: Object) -> tuple[str, int] | None:
    """Return the kind of a dtype's elements and their size; None if NumPy writes no such code."""
    code = dtype.args[0] if dtype.args else None
    found = _CODE.fullmatch(code) if isinstance(code, str) else None
    return (found[1], int(found[2]) * (4 if found[1] == "U" else 1)) if found else None


def _says_objects(state: tuple[Value, ...]) -> bool | None:
    """Return whether a state says that the elements are objects; None if it contradicts itself."""
    flags = state[7]
    if not isinstance(flags, int):
        return None
    return {0: False, _OBJECT_FLAGS: True}.get(flags & _OBJECT_FLAGS)


def _array_in(array: Value, nbytes: int) -> bool | None:
    """Return whether an array in each element has objects; None if it is not as large as that."""
    if not isinstance(array, tuple) or len(array) != 2:
        return None
    shape = array[1] if isinstance(array[1], tuple) else (array[1],)
    is_shape = len(shape) <= _MOST_DIMENSIONS and all(
        type(size) is int and 0 <= size < 1 << 32 for size in shape
    )
    part = _part(array[0])
    if part is None or not is_shape or part[0] * prod(shape) != nbytes:
        return None
    return part[1]


def _field_in(field: Value, nbytes: int) -> bool | None:
    """Return whether a field of a record has objects; None if it is not within the record."""
    if not isinstance(field, tuple) or len(field) not in (2, 3) or type(field[1]) is not int:
        return None
    part, offset = _part(field[0]), field[1]
    if part is None or offset < 0 or offset + part[0] > nbytes:
        return None
    return part[1]


def _part(dtype: Value) -> tuple[int, bool] | None:
    """Return the size of a dtype in another one, and whether it has objects; None if it is odd.

    One that has no state yet is odd: it could be given one later.
    """
    if not isinstance(dtype, Object) or dtype.class_path != _CLASS_PATH:
        return None
    found = _parse_code(dtype)
    if found is None or not isinstance(dtype.state, tuple):
        return None
    kind, nbytes = found
    state = dtype.state
    return nbytes, kind == "O" or bool(len(state) >= _NUM_FLAGGED and _says_objects(state))
