"""What Torch for Lua saved (`.t7`), before PyTorch.

Layout: one object; an object is an i32 and what belongs to it:

    0 nil
    1 number      f64
    2 text        an i32 length, bytes
    3 table       an i32 index; if the index is new: an i32 count, so many keys and values: objects
    4 of a class  an i32 index; if new: two texts, `V 1` and the class's name (old files lack the
                  first), and what the class writes: a table, mostly
    5 boolean     i32
    6 function    an i32 length, bytecode, an object: the values around it
    7, 8          the same behind an i32 index; the function only if that is new

A tensor writes an i32 number of dimensions, i64 sizes and strides, an i64 offset counted from 1,
and its storage, an object; a storage writes an i64 count and its elements. All is little endian. In
the form for people, numbers are digits, and something blank stands behind each array of them.

Limits: tensors are listed under the keys that lead to them first. Files of machines with 4-byte
longs or of other byte orders are not recognised. A class that writes itself in a way of its own
ends the reading. Tensors in the form for people have no place.

Source: torch/torch7, File.lua, generic/Tensor.c, generic/Storage.c, lib/TH/THDiskFile.c; tds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from torchkeep.contents import ITEM_SIZE, Contents, Finding, Storage, TensorEntry, Value
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.described_only import check_shape, not_loaded
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_NIL, _NUMBER, _TEXT, _TABLE, _CLASS, _BOOLEAN, _FUNCTION = range(7)
_OLD_CLOSURE, _CLOSURE = 7, 8
_LONGEST_NAME = 200
_LONGEST_NUMBER = 64
_MOST_DIMENSIONS = 64
_MOST_FACTS = 100
_MOST_FINDINGS = 20
_DEEPEST = 20_000
_DEEPEST_NAME = 30

_DTYPES = {
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "Float": "float32",
    "Double": "float64",
    "": "float32",
}
"""PyTorch's name of each element type; without one, a CUDA tensor has floats."""

_ARRAY_CLASS = re.compile(rf"torch\.(Cuda)?({'|'.join(_DTYPES)})(Tensor|Storage)")
_NAME = rb"[A-Za-z_][\w.]{,99}"

_SHORT_TEXT = rb"\x02\0\0\0..\0\0[ -~]"
_WHOLE_NUMBER = rb"\x01\0\0\0\0{4}...[\x3f-\x41]"
_BINARY = re.compile(
    rb"\x04\0\0\0\x01\0\0\0(.\0\0\0V \d+.\0\0\0" + _NAME + rb"|.\0\0\0[a-z]\w+\.[A-Z])"
    rb"|\x03\0\0\0\x01\0\0\0....(" + _SHORT_TEXT + rb"|" + _WHOLE_NUMBER + rb"[\x01-\x08]\0\0\0"
    rb"|\x01\0\0\0\0{8}" + _SHORT_TEXT + rb"|[\x03\x04]\0\0\0[\x01\x02]\0\0\0)"
    rb"|([\x07\x08]\0\0\0\x01\0\0\0|\x06\0\0\0)...\0\x1bL",
    re.DOTALL,
)
_TEXTUAL = re.compile(
    rb"4\n1\n\d+\nV \d+\n\d+\n" + _NAME + rb"\n"
    rb"|3\n1\n\d+\n(?:2\n\d+\n[A-Za-z_]|1\n\S+\n4\n\d+\n\d+\nV \d)"
    rb"|(?:[78]\n1\n|6\n)\d+\n\x1bL"
)
"""How files of the two forms start: with an object of a class, a table, a function."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with an object as Torch writes the first one."""
    del nbytes
    return bool(_BINARY.match(head) or _TEXTUAL.match(head))


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the objects are. A tensor's elements are stepped over, code is never run."""
    cursor = Cursor.over(file, limits)
    numbers = _Digits(cursor) if file.read_at(1, 1) == b"\n" else _Bytes(cursor)
    reading = _Reading(file, numbers, limits)
    problem: FileProblem = not_loaded("a file of Torch for Lua")
    try:
        reading.read()
    except FileProblem as broken:  # what was found before is worth keeping
        problem = broken
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=reading.tensors,
        metadata=reading.facts,
        findings=tuple(reading.findings),
        kind=reading.kind(),
        problem=problem,
    )


# --- The two forms -------------------------------------------------------------------------------


class _Numbers(Protocol):
    """How a form writes numbers and bytes."""

    cursor: Cursor

    def integer(self) -> int: ...
    def longs(self, count: int) -> list[int]: ...
    def real(self) -> float: ...
    def skip_bytes(self, nbytes: int) -> None: ...
    def text(self, nbytes: int) -> str: ...
    def skip_elements(self, count: int, dtype: str) -> int | None:
        """Step over a storage's elements; return where they are, or None if they are digits."""


class _Bytes:
    """The binary form."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def integer(self) -> int:
        return self.cursor.number(4, signed=True)

    def longs(self, count: int) -> list[int]:
        self.cursor.need(8 * count)
        return [self.cursor.number(8, signed=True) for _ in range(count)]

    def real(self) -> float:
        return self.cursor.real(8)

    def skip_bytes(self, nbytes: int) -> None:
        self.cursor.skip(nbytes)

    def text(self, nbytes: int) -> str:
        return self.cursor.text(nbytes, _LONGEST_NAME)

    def skip_elements(self, count: int, dtype: str) -> int | None:
        start = self.cursor.position
        self.cursor.skip(count * ITEM_SIZE[dtype])
        return start


class _Digits:
    """The form for people."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def word(self) -> str:
        word = self.cursor.word(_LONGEST_NUMBER)
        self.end_line()
        return word.decode("latin1")

    def end_line(self) -> None:
        """Step over the end of a line, if it stands here."""
        if self.cursor.remaining and self.cursor.at(self.cursor.position).take(1) == b"\n":
            self.cursor.skip(1)

    def integer(self) -> int:
        word = self.word()
        if not re.fullmatch(r"-?[0-9]+", word):
            raise DamagedFile(f"{shortened(word)!r} stands where a number is expected")
        return int(word)

    def longs(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def real(self) -> float:
        word = self.word()
        try:
            return float(word)
        except ValueError:
            raise DamagedFile(f"{shortened(word)!r} stands where a number is expected") from None

    def skip_bytes(self, nbytes: int) -> None:
        self.cursor.skip(nbytes)
        self.end_line()

    def text(self, nbytes: int) -> str:
        text = self.cursor.text(nbytes, _LONGEST_NAME)
        self.end_line()
        return text

    def skip_elements(self, count: int, dtype: str) -> int | None:
        if ITEM_SIZE[dtype] == 1:  # bytes are written as they are
            start = self.cursor.position
            self.skip_bytes(count)
            return start
        self.cursor.need(2 * count - 1 if count else 0)
        self.cursor.skip_words(count)
        self.end_line()
        return None


# --- Objects -------------------------------------------------------------------------------------

_Steps = Generator[str, Any, Any]
"""An object that is being read: it yields the key under which it needs another one, gets that
one's value, and returns its own. So nothing is ever deeper in Python's stack than one object."""


@dataclass(frozen=True, slots=True)
class _Elements:
    """A storage."""

    storage: Storage
    dtype: str


class _Reading:
    """The objects that were read, and what is to be kept of them."""

    def __init__(self, file: Readable, numbers: _Numbers, limits: Limits) -> None:
        self.file = file
        self.numbers = numbers
        self.limits = limits
        self.tensors: dict[str, Value] = {}
        self.facts: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.classes: Counter[str] = Counter()
        self.num_functions = 0
        self.root = ""
        """What the one object is: a class's name, or `function`, `table`, `value`."""
        self.known: dict[int, Value] = {}
        self.path: list[str] = []

    def read(self) -> None:
        """Read the one object, and all that is in it."""
        waiting: list[_Steps] = [self.object()]
        value: Value = None
        while waiting:
            try:
                self.path.append(waiting[-1].send(value))
            except StopIteration as done:
                waiting.pop()
                value = done.value
                if self.path:
                    self.path.pop()
            else:
                waiting.append(self.object())
                value = None
                if len(waiting) > _DEEPEST:
                    raise LimitReached(f"objects are nested more than {_DEEPEST:,} deep")
        if left := self.numbers.cursor.remaining:
            text = f"{left:,} bytes follow the object"
            self.findings.append(Finding("trailing-bytes", "ambiguous", "", text))

    def object(self) -> _Steps:
        """Return the steps of reading an object, whatever it is."""
        kind = self.numbers.integer()
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            return self.plain(self.numbers.real())
        if kind == _TEXT:
            return self.plain(self.numbers.text(self.numbers.integer()))
        if kind == _BOOLEAN:
            return self.plain(self.numbers.integer() != 0)
        if kind == _FUNCTION:
            yield from self.function()
            return None
        if kind not in (_TABLE, _CLASS, _OLD_CLOSURE, _CLOSURE):
            raise DamagedFile(
                f"no object stands before byte {self.numbers.cursor.position:,}: type {kind}"
            )
        index = self.numbers.integer()
        if index in self.known:
            return self.known[index]
        self.limits.check("records", len(self.known))
        self.known[index] = None
        if kind == _TABLE:
            return (yield from self.table())
        value = yield from (self.instance() if kind == _CLASS else self.function())
        self.known[index] = value
        return value

    def plain(self, value: Value) -> Value:
        """Keep a plain value if it stands near the top."""
        is_near = bool(self.path and self.path[-1]) and not any(self.path[:-1])
        if is_near and len(self.facts) < _MOST_FACTS:
            self.facts[self.path[-1]] = shortened(_shown(value), _LONGEST_NAME)
        return value

    def table(self) -> _Steps:
        self.root = self.root if self.path else "table"
        count = self.numbers.integer()
        self.numbers.cursor.need(2 * count)
        for _ in range(count):
            key = yield ""
            yield _shown_key(key)

    def function(self) -> _Steps:
        nbytes = self.numbers.integer()
        self.numbers.skip_bytes(nbytes)
        self.num_functions += 1
        self.root = self.root if self.path else "function"
        if len(self.findings) < _MOST_FINDINGS:
            text = "a function is stored as bytecode, which Lua runs without checking it"
            self.findings.append(Finding("lua-function", "needs-trust", self.place(), text))
        yield ""

    def place(self) -> str:
        parts = [part for part in self.path if part]
        shown = ".".join(parts[-_DEEPEST_NAME:])
        return shown if len(parts) <= _DEEPEST_NAME else f"....{shown}"

    def instance(self) -> _Steps:
        """Return the steps of reading an object of a class."""
        name = self.numbers.text(self.numbers.integer())
        if name.startswith("V "):
            name = self.numbers.text(self.numbers.integer())
        if not self.path:
            self.root = name
        self.classes[name] += 1
        array = _ARRAY_CLASS.fullmatch(name)
        if array is not None:
            is_cuda, dtype = array[1] is not None, _DTYPES[array[2]]
            if array[3] == "Storage":
                return self.storage(dtype, is_cuda=is_cuda)
            return (yield from self.tensor(dtype))
        if name in ("tds.Vec", "tds.Hash"):
            count = self.numbers.integer()
            self.numbers.cursor.need(count)
            yield ""
            for _ in range(count):
                key = (yield "") if name == "tds.Hash" else ""
                yield _shown_key(key)
        else:
            yield ""
        return None

    def storage(self, dtype: str, *, is_cuda: bool) -> _Elements:
        (count,) = self.numbers.longs(1)
        if not 0 <= count < 1 << 48:
            raise DamagedFile(f"a storage has {count:,} elements")
        start = self.numbers.skip_elements(count, dtype)
        storage = Storage(
            str(len(self.known)),
            count * ITEM_SIZE[dtype],
            None if start is None else self.file.start + start,
            "cuda" if is_cuda else "cpu",
            path=None if start is None else self.file.source,
        )
        return _Elements(storage, dtype)

    def tensor(self, dtype: str) -> _Steps:
        num_dimensions = self.numbers.integer()
        if not 0 <= num_dimensions <= _MOST_DIMENSIONS:
            raise DamagedFile(f"a tensor has {num_dimensions:,} dimensions")
        shape = tuple(self.numbers.longs(num_dimensions)) or (0,)
        stride = tuple(self.numbers.longs(num_dimensions)) or (1,)
        (offset,) = self.numbers.longs(1)
        place = self.place()
        elements = yield ""
        if not isinstance(elements, _Elements):
            elements = _Elements(Storage("", 0, None), dtype)
        check_shape(place, shape)
        if elements.dtype != dtype or min(*stride, offset - 1) < 0:
            raise DamagedFile(f"tensor {shortened(place)!r} does not fit its storage")
        entry = TensorEntry(dtype, shape, stride, elements.storage, offset - 1)
        if entry.nbytes_needed > elements.storage.nbytes:
            raise DamagedFile(f"tensor {shortened(place)!r} reaches past its storage")
        name = place if place not in self.tensors else f"{place}#{len(self.tensors)}"
        self.tensors[name] = entry
        return None

    def kind(self) -> str:
        """Return what the file is in a few words."""
        modules = Counter({k: n for k, n in self.classes.items() if not _ARRAY_CLASS.fullmatch(k)})
        parts = [shortened(self.root) or "value"]
        if self.root == "table":
            parts += [f"{n:,} {shortened(k)}" for k, n in modules.most_common(3)]
        elif modules:
            parts.append(counted(modules.total(), "object"))
        parts.append(counted(len(self.tensors), "tensor"))
        if self.num_functions:
            parts.append(counted(self.num_functions, "function"))
        return f"file of Torch for Lua: {', '.join(parts)}"


def _shown_key(key: Value) -> str:
    """Return a table's key as a part of a name."""
    return shortened(_shown(key)) if isinstance(key, str | float | bool) else "?"


def _shown(value: Value) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


FORMAT = Format("lua-torch7", sniff, describe)
