"""What a pickle names, calls and changes: kept as recipes, and judged.

What would be a trick in a real unpickler (a name made at run time, attributes set on a function)
is noted as a `Finding`. This is the part of the machine that grows with the attacks; the opcodes
themselves never change.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Iterable, Mapping

from torchkeep.contents import (
    DictObject,
    Finding,
    Global,
    Object,
    Severity,
    TensorEntry,
    Value,
    attributes_of,
)
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.pickled import COMPUTED, Constructor
from torchkeep.pickles.source import ByteSource

_GETATTR = Global("builtins", "getattr")
_ESCAPING = (
    "__base__ __bases__ __builtins__ __class__ __closure__ __code__ __dict__ __func__ __getattr__ "
    "__getattribute__ __globals__ __mro__ __self__ __subclasses__ __wrapped__ f_globals gi_frame "
    "mro"
).split()
"""Attributes that lead from any object to all that the interpreter has."""
_MAKERS_OF_TYPES = (
    ".cloudpickle._builtin_type",
    ".cloudpickle._make_skeleton_class",
    ".cloudpickle._make_skeleton_enum",
    "dill._dill._create_type",
    "dill._dill._load_type",
)
"""What makes one of Python's own types by its name, or a class that is held as byte code."""

_NOTHING = object()
_MOST_FINDINGS = 100
_TEXTS = (str, bytes, bytearray)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_ITEM_NBYTES = 32
"""About what an item of a container takes."""


class Calls:
    """The names, calls and changes of one pickle, answered with inert values.

    Args:
        source: where the pickle is read, for the place in a finding.
        constructors: by dotted name, the calls that are answered with plain values.
        limits: bounds of what may be copied.
        only_called: the dotted name of a constructor that must be called wherever it is used.

    Attributes:
        globals: every name so far, in the order of first mention.
        findings: what was odd so far, by rule and text.
    """

    def __init__(
        self,
        source: ByteSource,
        constructors: Mapping[str, Constructor],
        limits: Limits,
        only_called: str = "",
    ) -> None:
        self._source = source
        self._constructors = constructors
        self._limits = limits
        self.globals: dict[Global, None] = {}
        self.findings: dict[tuple[str, str], Finding] = {}
        self._num_findings: Counter[str] = Counter()
        self._copied_nbytes = 0
        self._only_called = only_called
        self._watched: object = _NOTHING  # the one value of that name, once it was mentioned
        self._num_uncalled = 0

    def note(self, rule: str, severity: Severity, text: str) -> None:
        """Keep a finding, once per rule and text; a file can't make the report endless."""
        if (rule, text) not in self.findings and self._num_findings[rule] < _MOST_FINDINGS:
            place = f"pickle byte {self._source.position}"
            self._num_findings[rule] += 1
            self.findings[rule, text] = Finding(rule, severity, place, text)

    def name(self, module: Value, name: Value, protocol: int) -> Global:
        """Return a name as a value, under Python 3's spelling."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.note(
                "computed-global", "dangerous", "a name to import is made while the file is read"
            )
            return COMPUTED
        if protocol < 3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            else:
                module = IMPORT_MAPPING.get(module, module)
        found = Global(module, name)
        self.globals.setdefault(found)
        return self._watch(found) if str(found) == self._only_called else found

    def _watch(self, found: Global) -> Value:
        """Count a use of the name that may only be called; return the one value it is known by."""
        if self._watched is _NOTHING:
            self._watched = found
        self._num_uncalled += 1
        return self._watched

    def used_again(self, value: Value) -> None:
        """Count a use of the name that may only be called, if the value is that."""
        if value is self._watched:
            self._num_uncalled += 1

    def note_uncalled(self) -> None:
        """Note that a name was used, and not called where it was.

        What is kept can be called by Python itself: as `__setstate__` or `append` of an object.
        """
        if self._num_uncalled:
            text = f"{self._only_called}, which runs what it is given, is handed to something else"
            self.note("hidden-call", "dangerous", text)

    def call(self, callee: Value, args: Value, kwargs: Value = None) -> Value:
        """Return the inert result of a call."""
        if not isinstance(args, tuple) or not (kwargs is None or isinstance(kwargs, dict)):
            self.note("malformed-call", "damaged", "something is called without a tuple")
            return Object(callee, (args,))
        if not isinstance(callee, Global):
            if not _is_named(callee):
                text = "something made by the file itself is called"
                self.note("computed-call", "dangerous", text)
            return Object(callee, args, dict(kwargs or {}))
        if callee == _GETATTR and len(args) >= 2 and not kwargs:
            return self._attribute(callee, args)
        constructor = None if kwargs else self._constructors.get(str(callee))
        if constructor is not None:
            self._num_uncalled -= callee is self._watched
            self._charge(args)
            try:
                return constructor(*args)
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                self.note("malformed-call", "damaged", f"{callee}: {error}")
        return Object(callee, args, dict(kwargs or {}))

    def _attribute(self, callee: Global, args: tuple[Value, ...]) -> Value:
        """Return what `getattr` is asked for: a name, if it is asked of one."""
        target, attribute = args[:2]
        if not isinstance(target, Global) or not isinstance(attribute, str):
            if attribute in _ESCAPING:
                text = f"{attribute} is taken from something that the file made"
                self.note("computed-global", "dangerous", text)
            return Object(callee, args)
        found = Global(target.module, f"{target.name}.{attribute}")
        self.globals.setdefault(found)
        return found

    def set_state(self, target: Value, state: Value) -> None:
        """Keep what would be set on a value: its attributes, or what `__setstate__` would get."""
        if isinstance(target, Object):
            if isinstance(target.state, dict) and isinstance(state, dict):
                self._charge((target.state, state))
                target.state = {**target.state, **state}
            else:
                target.state = state if target.state is None else (target.state, state)
        elif isinstance(target, DictObject):
            self._charge(state if isinstance(state, tuple) else (state,))
            target.attributes.update(attributes_of(state))
        else:
            self.refuse("attributes are set on", target)

    def refuse(self, what: str, target: Value) -> None:
        """Note that a value is changed in a way that its kind does not have."""
        kind = "a tensor" if isinstance(target, TensorEntry) else f"a {type(target).__name__}"
        severity: Severity = "damaged"
        if isinstance(target, TensorEntry | Global):
            severity = "dangerous"
        elif isinstance(target, list | dict | bytearray):  # Python would do it
            severity = "ambiguous"
        self.note("mutation", severity, f"{what} {kind}, which no honest writer does")

    def _charge(self, values: Iterable[Value]) -> None:
        """Count what is about to be copied.

        A memo entry takes two bytes to name, so a copy of it is cheap to ask for: without a
        bound, a megabyte of pickle asks for terabytes.
        """
        for value in values:
            if isinstance(value, _TEXTS):
                self._copied_nbytes += len(value)
            elif isinstance(value, _CONTAINERS):
                self._copied_nbytes += _ITEM_NBYTES * len(value)
        if self._copied_nbytes > self._limits.copied_nbytes:
            self._limits.check("copied_nbytes", self._copied_nbytes)


def _is_named(callee: Value) -> bool:
    """Whether what is called is a name of the file, an instance of one, or a class."""
    for _ in range(8):
        if not isinstance(callee, Object) or callee.class_path != "functools.partial":
            break
        parts = callee.state if isinstance(callee.state, tuple) else callee.args
        callee = parts[0] if parts else None
    if isinstance(callee, Object) and isinstance(callee.callee, Global):
        is_class = callee.callee.name.rpartition(".")[2].lstrip("_")[:1].isupper()
        return is_class or callee.class_path.endswith(_MAKERS_OF_TYPES)
    return isinstance(callee, Global)
