"""A pickle machine that runs every opcode and calls nothing.

It follows CPython's `Modules/_pickle.c`, which is what reads pickles in practice, down to its
treatment of marks, FRAME and text numbers. Where C calls something, this machine keeps the
recipe as an `Object`; a few callables that only make plain values (`constructors`) are answered
with the value itself. Names are never imported.

`stack` holds the values, `calls` knows what is named, called and changed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from torchkeep.contents import Global, Object, Value
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.pickles.calls import Calls
from torchkeep.pickles.keys import Keys
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits, how_to_raise
from torchkeep.pickles.opcodes import OPCODES, WEIGHTS_ONLY_OPCODES
from torchkeep.pickles.pickled import PERSISTENT_ID, Builder, Constructor, Pickled
from torchkeep.pickles.source import ByteSource
from torchkeep.pickles.stack import Stack
from torchkeep.pickles.text import decimal, integer, long_integer, memo_index, quoted


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
    machine = _Machine(
        source,
        persistent or _keep_persistent_id,
        Calls(source, constructors or {}, limits, only_called),
        builder or _build_nothing,
        limits,
    )
    try:
        root = machine.run()
        machine.calls.note_uncalled()
        return machine.pickled(root)
    except FileProblem as problem:
        problem.seen = problem.seen or machine.pickled(None)
        raise
    except (RecursionError, MemoryError) as error:
        reached = LimitReached(f"reading the pickle ran out of {_RAN_OUT[type(error)]}")
        reached.seen = machine.pickled(None)
        raise reached from None


_Handler = Callable[[], None]
_STOP = 0x2E
_RAN_OUT = {RecursionError: "stack", MemoryError: "memory"}


def _keep_persistent_id(pid: Value) -> Value:
    return Object(PERSISTENT_ID, (pid,))


def _build_nothing(target: Value, state: Value) -> None:
    del target, state


class _Machine(Stack):
    """The state of one run. Its methods named like opcodes are those opcodes."""

    def __init__(
        self,
        source: ByteSource,
        persistent: Callable[[Value], Value],
        calls: Calls,
        builder: Builder,
        limits: Limits,
    ) -> None:
        super().__init__(source)
        self.take = source.take
        self.byte = source.byte
        self.persistent = persistent
        self.builder = builder
        self.limits = limits
        self.keys = Keys(limits)
        self.calls = calls
        self.call = calls.call
        self.note = calls.note
        self.refuse = calls.refuse
        self.protocol = 0
        self.frame_end: int | None = None
        self.unusual: dict[str, None] = {}

    def run(self) -> Value:
        handlers = [self._no_opcode] * 256
        for opcode, name in OPCODES.items():
            handlers[opcode] = getattr(self, f"_{name.lower()}")
            if name not in WEIGHTS_ONLY_OPCODES:
                handlers[opcode] = self.noted_once(opcode, handlers)
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
            globals=tuple(self.calls.globals),
            findings=tuple(self.calls.findings.values()),
            protocol=self.protocol,
            unusual=tuple(self.unusual),
        )

    def noted_once(self, opcode: int, handlers: list[_Handler]) -> _Handler:
        """Return a handler that notes an opcode, and makes way for its own at the first use."""
        handler = handlers[opcode]

        def note_and_handle() -> None:
            handlers[opcode] = handler
            self.unusual[OPCODES[opcode]] = None
            handler()

        return note_and_handle

    # --- What the opcodes share -------------------------------------------------------------

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
        return self.calls.name(module, name, self.protocol)

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

    _mark = Stack.mark

    def _pop(self) -> None:
        if self.marks and self.fence == len(self.stack):
            self.pop_mark()
        else:
            self.pop()

    _pop_mark = Stack.pop_to_mark

    def _dup(self) -> None:
        value = self.top()
        self.calls.used_again(value)
        self.push(value)

    def recall(self, index: int) -> None:
        super().recall(index)
        self.calls.used_again(self.stack[-1])

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
        else:
            self.calls.set_state(target, state)

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
