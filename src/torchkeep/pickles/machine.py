"""A pickle machine that runs every opcode and calls nothing.

It follows CPython's `Modules/_pickle.c`, which is what reads pickles in practice, down to its
treatment of marks, FRAME and text numbers. Where C calls something, this machine keeps the
recipe as an `Object`; a few callables that only make plain values (`constructors`) are answered
with the value itself. Names are never imported. What would be a trick in a real unpickler
(a name made at run time, attributes set on a function) is noted as a `Finding`.
"""

from __future__ import annotations

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from torchkeep.contents import (
    DictObject,
    Finding,
    Global,
    Object,
    TensorEntry,
    Value,
    attributes_of,
)
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.pickles.keys import Keys
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits, how_to_raise
from torchkeep.pickles.opcodes import OPCODES, WEIGHTS_ONLY_OPCODES
from torchkeep.pickles.source import ByteSource
from torchkeep.pickles.text import decimal, integer, long_integer, memo_index, quoted

Constructor = Callable[..., Value]
"""Makes the inert value of a call from the call's arguments; ValueError if they make no sense."""


@dataclass(frozen=True, slots=True)
class Pickled:
    """What one pickle stream holds."""

    root: Value
    """The value that it leaves."""
    globals: tuple[Global, ...]
    """Every name that it mentions, in the order of first mention."""
    findings: tuple[Finding, ...]
    """What a reader should know about the stream."""
    protocol: int
    """The protocol that it declares; 0 if it declares none."""
    unusual: tuple[str, ...] = ()
    """The opcodes in it that `torch.load(weights_only=True)` does not know."""


Builder = Callable[[Value, Value], Value | None]
"""Makes what a value becomes when a state is set on it; None if that is nothing special."""


def run_pickle(
    source: ByteSource,
    *,
    persistent: Callable[[Value], Value] | None = None,
    constructors: Mapping[str, Constructor] | None = None,
    builder: Builder | None = None,
    only_called: str = "",
    limits: Limits = DEFAULT_LIMITS,
) -> Pickled:
    """Return what the pickle at the source's position holds; the source ends up behind its STOP.

    Args:
        source: the bytes.
        persistent: turns a persistent id into a value; without it, such an id stays an `Object`.
        constructors: by dotted name, the calls that are answered with plain values.
        builder: sees every target and state of BUILD, and may answer with another value.
        only_called: the dotted name of one of the constructors that runs what it is given. Honest
            pickles call it at once; one that keeps it for something else to call is dangerous.
        limits: bounds of the work.

    Raises:
        DamagedFile: truncated, or no valid pickle.
        LimitReached: larger than a limit allows.
        UnsupportedContent: it needs buffers that are outside the stream.
    """
    machine = _Machine(source, persistent or _keep_persistent_id, constructors or {}, limits)
    machine.builder = builder or _build_nothing
    machine.only_called = only_called
    try:
        root = machine.run()
        machine.note_uncalled()
        return machine.pickled(root)
    except FileProblem as problem:
        problem.seen = problem.seen or machine.pickled(None)
        raise
    except (RecursionError, MemoryError) as error:
        reached = LimitReached(f"reading the pickle ran out of {_RAN_OUT[type(error)]}")
        reached.seen = machine.pickled(None)
        raise reached from None


_RAN_OUT = {RecursionError: "stack", MemoryError: "memory"}

PERSISTENT_ID = Global("pickle", "<persistent id>")
"""The callee of the `Object` that stands for a persistent id nobody could resolve."""

COMPUTED = Global("<computed>", "<computed>")
"""Stands for a name that the file makes at run time."""


def _keep_persistent_id(pid: Value) -> Value:
    return Object(PERSISTENT_ID, (pid,))


def _build_nothing(target: Value, state: Value) -> None:
    del target, state


class _Machine:
    """The state of one run. Its methods named like opcodes are those opcodes."""

    def __init__(
        self,
        source: ByteSource,
        persistent: Callable[[Value], Value],
        constructors: Mapping[str, Constructor],
        limits: Limits,
    ) -> None:
        self.source = source
        self.take = source.take
        self.byte = source.byte
        self.persistent = persistent
        self.constructors = constructors
        self.builder: Builder = _build_nothing
        self.only_called = ""
        self.watched: object = _NOTHING  # the name `only_called`, once it was mentioned
        self.num_uncalled = 0
        self.limits = limits
        self.keys = Keys(limits)
        self.protocol = 0
        self.stack: list[Value] = []
        self.push = self.stack.append
        self.marks: list[int] = []
        self.fence = 0  # the stack's length at the last mark: nothing below may be taken
        self.memo: dict[int, Value] = {}
        self.frame_end: int | None = None
        self.copied_nbytes = 0
        self.globals: dict[Global, None] = {}
        self.unusual: dict[str, None] = {}
        self.findings: dict[tuple[str, str], Finding] = {}
        self.num_findings: Counter[str] = Counter()

    def run(self) -> Value:
        handlers = [self._no_opcode] * 256
        for opcode, name in OPCODES.items():
            handler = getattr(self, f"_{name.lower()}")
            if name not in WEIGHTS_ONLY_OPCODES:
                handler = self.noted_once(name, opcode, handler, handlers)
            handlers[opcode] = handler
        byte = self.byte
        self.source.allow(self.limits)
        for _ in range(self.limits.steps):
            opcode = byte()
            if opcode == _STOP:
                return self.pop()
            handlers[opcode]()
            if self.frame_end is not None:
                self.check_frame(self.source.position)
        raise LimitReached(
            f"the pickle has more than steps={self.limits.steps:,} opcodes",
            advice=how_to_raise("steps"),
        )

    def pickled(self, root: Value) -> Pickled:
        """Return what was seen so far, with this as the value that the stream leaves."""
        return Pickled(
            root=root,
            globals=tuple(self.globals),
            findings=tuple(self.findings.values()),
            protocol=self.protocol,
            unusual=tuple(self.unusual),
        )

    def noted_once(
        self,
        name: str,
        opcode: int,
        handler: Callable[[], None],
        handlers: list[Callable[[], None]],
    ) -> Callable[[], None]:
        """Return a handler that notes an opcode, and makes way for its own at the first use."""

        def note_and_handle() -> None:
            handlers[opcode] = handler
            self.unusual[name] = None
            handler()

        return note_and_handle

    # --- What the opcodes share -------------------------------------------------------------

    def note(
        self, rule: str, severity: Literal["note", "ambiguous", "dangerous", "damaged"], text: str
    ) -> None:
        """Keep a finding, once per rule and text; a file can't make the report endless."""
        if (rule, text) not in self.findings and self.num_findings[rule] < _MOST_FINDINGS:
            place = f"pickle byte {self.source.position}"
            self.num_findings[rule] += 1
            self.findings[rule, text] = Finding(rule, severity, place, text)

    def charge(self, values: Iterable[Value]) -> None:
        """Count what is about to be copied.

        A memo entry takes two bytes to name, so a copy of it is cheap to ask for: without a
        bound, a megabyte of pickle asks for terabytes.
        """
        for value in values:
            if isinstance(value, _TEXTS):
                self.copied_nbytes += len(value)
            elif isinstance(value, _CONTAINERS):
                self.copied_nbytes += _ITEM_NBYTES * len(value)
        if self.copied_nbytes > self.limits.copied_nbytes:
            self.limits.check("copied_nbytes", self.copied_nbytes)

    def pop(self) -> Value:
        if len(self.stack) <= self.fence:
            raise self.empty()
        return self.stack.pop()

    def top(self) -> Value:
        if len(self.stack) <= self.fence:
            raise self.empty()
        return self.stack[-1]

    def empty(self) -> DamagedFile:
        return DamagedFile(f"the pickle's stack is empty at byte {self.source.position}")

    def pop_from(self, start: int) -> list[Value]:
        if start < self.fence:
            raise self.empty()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_mark(self) -> int:
        if not self.marks:
            raise DamagedFile(f"the pickle has no MARK for byte {self.source.position}")
        mark = self.marks.pop()
        self.fence = self.marks[-1] if self.marks else 0
        return mark

    def pop_to_mark(self) -> list[Value]:
        return self.pop_from(self.pop_mark())

    def length(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def sized(self, width: int) -> bytes:
        """Return a byte string that is preceded by its length."""
        return self.take(self.length(width))

    def line(self) -> bytes:
        """Return a line that C takes for one: it may not be empty."""
        line = self.source.line()
        if not line:
            raise DamagedFile(f"the pickle has an empty line at byte {self.source.position}")
        return line

    def name(self, module: Value, name: Value) -> Global:
        """Return a name as a value, under Python 3's spelling."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.note(
                "computed-global", "dangerous", "a name to import is made while the file is read"
            )
            return COMPUTED
        if self.protocol < 3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            else:
                module = IMPORT_MAPPING.get(module, module)
        found = Global(module, name)
        self.globals.setdefault(found)
        return self.watch(found) if str(found) == self.only_called else found

    def watch(self, found: Global) -> Global:
        """Count a use of the name that may only be called; return the one value it is known by."""
        self.num_uncalled += 1
        if not isinstance(self.watched, Global):
            self.watched = found
        return self.watched

    def note_uncalled(self) -> None:
        """Note that a name was used, and not called where it was.

        What is kept can be called by Python itself: as `__setstate__` or `append` of an object.
        """
        if self.num_uncalled:
            text = f"{self.only_called}, which runs what it is given, is handed to something else"
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
            return self.attribute(callee, args)
        constructor = None if kwargs else self.constructors.get(str(callee))
        if constructor is not None:
            self.num_uncalled -= callee is self.watched
            self.charge(args)
            try:
                return constructor(*args)
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                self.note("malformed-call", "damaged", f"{callee}: {error}")
        return Object(callee, args, dict(kwargs or {}))

    def attribute(self, callee: Global, args: tuple[Value, ...]) -> Value:
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

    def check_frame(self, position: int) -> None:
        """Leave the frame if an opcode that ends at `position` is its last."""
        if self.frame_end is None or position < self.frame_end:
            return
        if position > self.frame_end:
            self.note("frame-overrun", "ambiguous", "an opcode reaches over the end of its frame")
        self.frame_end = None

    def checked(self, key: Value, table: Value) -> Value:
        """Return a key that may be put into a table."""
        self.keys.check(key, table)
        return key

    # --- Control, stack, memo ---------------------------------------------------------------

    def _proto(self) -> None:
        self.protocol = self.take(1)[0]
        if self.protocol > 5:
            raise DamagedFile(
                f"the pickle declares protocol {self.protocol}; there is none above 5"
            )

    def _frame(self) -> None:
        nbytes = self.length(8)
        if nbytes > self.source.remaining:
            raise DamagedFile(f"the pickle is truncated: a frame of {nbytes} bytes is cut off")
        if self.frame_end is not None:
            self.note("frame-overrun", "ambiguous", "a frame starts inside another one")
        self.frame_end = self.source.position + nbytes

    def _stop(self) -> None:  # never called: `run` returns there
        raise AssertionError

    def _no_opcode(self) -> None:
        position = self.source.position - 1
        raise DamagedFile(f"the pickle's byte {position} is no opcode")

    def _mark(self) -> None:
        self.fence = len(self.stack)
        self.marks.append(self.fence)

    def _pop(self) -> None:
        if self.marks and self.fence == len(self.stack):
            self.pop_mark()
        else:
            self.pop()

    def _pop_mark(self) -> None:
        self.pop_to_mark()

    def _dup(self) -> None:
        value = self.top()
        self.num_uncalled += value is self.watched
        self.push(value)

    def remember(self, index: int) -> None:
        if index < 0:
            raise DamagedFile("the pickle stores under a negative memo index")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        try:
            value = self.memo[index]
        except KeyError:
            raise DamagedFile(
                f"the pickle asks for memo entry {index}, which was never stored"
            ) from None
        if value is self.watched:
            self.num_uncalled += 1
        self.push(value)

    def _put(self) -> None:
        self.remember(memo_index(self.line()))

    def _binput(self) -> None:
        self.memo[self.byte()] = self.top()

    def _long_binput(self) -> None:
        self.remember(self.length(4))

    def _memoize(self) -> None:
        self.remember(len(self.memo))

    def _get(self) -> None:
        self.recall(memo_index(self.line()))

    def _binget(self) -> None:
        self.recall(self.byte())

    def _long_binget(self) -> None:
        self.recall(self.length(4))

    # --- Singletons and numbers -------------------------------------------------------------

    def _none(self) -> None:
        self.push(None)

    def _newtrue(self) -> None:
        self.push(True)

    def _newfalse(self) -> None:
        self.push(False)

    def _int(self) -> None:
        self.push(integer(self.line()))

    def _long(self) -> None:
        self.push(long_integer(self.line()))

    def _binint(self) -> None:
        self.push(int.from_bytes(self.take(4), "little", signed=True))

    def _binint1(self) -> None:
        self.push(self.byte())

    def _binint2(self) -> None:
        self.push(self.length(2))

    def _long1(self) -> None:
        self.push(int.from_bytes(self.sized(1), "little", signed=True))

    def _long4(self) -> None:
        nbytes = int.from_bytes(self.take(4), "little", signed=True)
        if nbytes < 0:
            raise DamagedFile("the pickle has an integer of negative length")
        self.push(int.from_bytes(self.take(nbytes), "little", signed=True))

    def _float(self) -> None:
        self.push(decimal(self.line()))

    def _binfloat(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    # --- Text and bytes ---------------------------------------------------------------------

    def push_py2_string(self, data: bytes) -> None:
        """Push Python 2's `str`: text if it is valid UTF-8 (torch's reading), else the bytes."""
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(data)

    def _string(self) -> None:
        self.push_py2_string(quoted(self.source.line()))

    def _binstring(self) -> None:
        nbytes = int.from_bytes(self.take(4), "little", signed=True)
        if nbytes < 0:
            raise DamagedFile("the pickle has a string of negative length")
        self.push_py2_string(self.take(nbytes))

    def _short_binstring(self) -> None:
        self.push_py2_string(self.sized(1))

    def _binbytes(self) -> None:
        self.push(self.sized(4))

    def _short_binbytes(self) -> None:
        self.push(self.sized(1))

    def _binbytes8(self) -> None:
        self.push(self.sized(8))

    def _bytearray8(self) -> None:
        self.push(bytearray(self.sized(8)))

    def _next_buffer(self) -> None:
        raise UnsupportedContent("the pickle needs buffers that are not in the file")

    def _readonly_buffer(self) -> None:
        if not isinstance(self.top(), bytes | bytearray):
            raise DamagedFile("the pickle makes a read-only buffer of something else")

    def decode(self, data: bytes, encoding: str, errors: str) -> None:
        try:
            self.push(data.decode(encoding, errors))
        except UnicodeDecodeError as error:
            raise DamagedFile(f"the pickle has text that is not {encoding} ({error})") from None

    def _unicode(self) -> None:
        self.decode(self.source.line(), "raw-unicode-escape", "strict")

    def _binunicode(self) -> None:
        self.decode(self.sized(4), "utf-8", "surrogatepass")

    def _short_binunicode(self) -> None:
        self.decode(self.sized(1), "utf-8", "surrogatepass")

    def _binunicode8(self) -> None:
        self.decode(self.sized(8), "utf-8", "surrogatepass")

    # --- Containers -------------------------------------------------------------------------

    def _empty_list(self) -> None:
        self.push([])

    def _list(self) -> None:
        self.push(self.pop_to_mark())

    def append_to(self, target: Value, items: list[Value]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Object):
            target.items.extend(items)
        elif items:
            self.refuse("items are appended to", target)

    def _append(self) -> None:
        item = self.pop()
        self.append_to(self.top(), [item])

    def _appends(self) -> None:
        items = self.pop_to_mark()
        self.append_to(self.top(), items)

    def _empty_tuple(self) -> None:
        self.push(())

    def _tuple(self) -> None:
        self.push(tuple(self.pop_to_mark()))

    def _tuple1(self) -> None:
        self.push((self.pop(),))

    def _tuple2(self) -> None:
        self.push(tuple(self.pop_from(len(self.stack) - 2)))

    def _tuple3(self) -> None:
        self.push(tuple(self.pop_from(len(self.stack) - 3)))

    def _empty_dict(self) -> None:
        self.push({})

    def _dict(self) -> None:
        items = self.pop_to_mark()
        target: dict[Value, Value] = {}
        self.set_in(target, items)
        self.push(target)

    def set_in(self, target: Value, items: list[Value]) -> None:
        if len(items) % 2:
            raise DamagedFile("the pickle sets a key without a value")
        into = target.pairs if isinstance(target, Object) else target
        if isinstance(into, dict):
            for index in range(0, len(items), 2):
                into[self.checked(items[index], into)] = items[index + 1]
        elif items:
            self.refuse("items are set in", target)

    def _setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_in(self.top(), [key, value])

    def _setitems(self) -> None:
        items = self.pop_to_mark()
        self.set_in(self.top(), items)

    def _empty_set(self) -> None:
        self.push(set())

    def _additems(self) -> None:
        items = self.pop_to_mark()
        target = self.top()
        if isinstance(target, set):
            target.update(self.checked(item, target) for item in items)
        elif isinstance(target, Object):
            target.items.extend(items)
        elif items:
            self.refuse("members are added to", target)

    def _frozenset(self) -> None:
        items = self.pop_to_mark()
        self.push(frozenset(self.checked(item, items) for item in items))

    def refuse(self, what: str, target: Value) -> None:
        """Note that a value is changed in a way that its kind does not have."""
        kind = "a tensor" if isinstance(target, TensorEntry) else f"a {type(target).__name__}"
        severity: Literal["dangerous", "ambiguous", "damaged"] = "damaged"
        if isinstance(target, TensorEntry | Global):
            severity = "dangerous"
        elif isinstance(target, list | dict | bytearray):  # Python would do it
            severity = "ambiguous"
        self.note("mutation", severity, f"{what} {kind}, which no honest writer does")

    # --- Names and objects ------------------------------------------------------------------

    def name_line(self) -> str:
        try:
            return self.line().decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedFile("the pickle has a name that is not UTF-8") from None

    def _global(self) -> None:
        module = self.name_line()
        self.push(self.name(module, self.name_line()))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(self.name(module, name))

    def _inst(self) -> None:
        module = self.name_line()
        callee = self.name(module, self.name_line())
        self.push(self.call(callee, tuple(self.pop_to_mark())))

    def _obj(self) -> None:
        items = self.pop_to_mark()
        if not items:
            raise DamagedFile("the pickle makes an object without a class")
        self.push(self.call(items[0], tuple(items[1:])))

    def _reduce(self) -> None:
        args, callee = self.pop(), self.pop()
        self.push(self.call(callee, args))

    def _newobj(self) -> None:
        args, callee = self.pop(), self.pop()
        self.push(self.call(callee, args))

    def _newobj_ex(self) -> None:
        kwargs, args, callee = self.pop(), self.pop(), self.pop()
        self.push(self.call(callee, args, kwargs))

    def _build(self) -> None:
        state, target = self.pop(), self.top()
        self.check_frame(self.source.position)  # the builder may take bytes behind the frame
        built = self.builder(target, state)
        if built is not None:
            self.replace_top(built)
        elif isinstance(target, Object):
            if isinstance(target.state, dict) and isinstance(state, dict):
                self.charge((target.state, state))
                target.state = {**target.state, **state}
            else:
                target.state = state if target.state is None else (target.state, state)
        elif isinstance(target, DictObject):
            self.charge(state if isinstance(state, tuple) else (state,))
            target.attributes.update(attributes_of(state))
        else:
            self.refuse("attributes are set on", target)

    def replace_top(self, value: Value) -> None:
        """Put `value` in the place of the top one, also for those who remember that."""
        old = self.stack[-1]
        self.stack[-1] = value
        # A value is remembered as soon as it is made, a little before its state is.
        for index in islice(reversed(self.memo), _RECENT):
            if self.memo[index] is old:
                self.memo[index] = value

    def _persid(self) -> None:
        self.decode(self.source.line(), "ascii", "strict")
        self._binpersid()

    def _binpersid(self) -> None:
        self.push(self.persistent(self.pop()))

    def extension(self, width: int) -> None:
        code = self.length(width)
        self.note("extension", "dangerous", f"copyreg extension {code} names something unknown")
        self.push(self.name("copyreg", f"<extension {code}>"))

    def _ext1(self) -> None:
        self.extension(1)

    def _ext2(self) -> None:
        self.extension(2)

    def _ext4(self) -> None:
        self.extension(4)


_STOP = 0x2E
_NOTHING = object()
_MOST_FINDINGS = 100
_TEXTS = (str, bytes, bytearray)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_ITEM_NBYTES = 32
"""About what an item of a container takes."""
_RECENT = 64


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
