"""Inert values as a pickle of protocol 2, put together from its opcodes.

Only opcodes that `torch.load(weights_only=True)` knows are used. The stream is made here, since
Python's own pickler writes live objects, and there are none. Names and texts stand in it once and
are recalled after that; so is each list, dict or object that is in the tree at two places, which
keeps it one.

Source: Lib/pickle.py of CPython (`save_*`), torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import struct
from _compat_pickle import REVERSE_IMPORT_MAPPING, REVERSE_NAME_MAPPING
from collections.abc import Callable, Iterable
from pickle import encode_long

from torchkeep.contents import Array, DictObject, Files, Global, Object, Value, child_path, repr_key
from torchkeep.errors import SaveRefused

_COUNTER = "collections.Counter"
_LEAVES = (complex, bytes, bytearray)
_ENCODE = Global("_codecs", "encode")
_BYTEARRAY = Global("builtins", "bytearray")
_COMPLEX = Global("builtins", "complex")
FLAGS = {False: b"\x89", True: b"\x88"}
"""The opcodes of the two truth values."""


class PickleStream:
    """A pickle that is being written.

    Attributes:
        out: its bytes so far, in pieces.
        writers: by type, what writes a value that may have others in it.
    """

    writers: dict[type, Callable[[PickleStream, Value, str], None]]

    def __init__(self) -> None:
        self.out: list[bytes] = [b"\x80\x02"]
        self._num_remembered = 0
        self._values: dict[int, bytes] = {}
        self._texts: dict[str, bytes] = {}
        self._names: dict[Global, bytes] = {}
        self._unfinished: set[int] = set()

    def write(self, value: Value, path: str) -> None:
        """Write a value that stands at a path of the tree.

        Raises:
            SaveRefused: it is none that such a pickle has.
        """
        kind = type(value)
        if kind is str:
            self.out.append(self.text(value))
        elif kind in _PLAIN:
            self.out.append(_PLAIN[kind](value))
        elif id(value) in self._values:
            self.out.append(self._values[id(value)])
        elif kind is Global:
            self.out.append(self.name(value))
        elif kind in _LEAVES:
            self._leaf(value)
        elif kind in self.writers:
            self.writers[kind](self, value, path)
        else:
            raise _refused(value, path)

    # --- What is recalled -------------------------------------------------------------------

    def remember(self) -> tuple[bytes, bytes]:
        """Return what puts the value on top of the stack into the memo, and what recalls it."""
        index = self._num_remembered
        self._num_remembered += 1
        if index < 256:
            return b"q%c" % index, b"h%c" % index
        packed = index.to_bytes(4, "little")
        return b"r" + packed, b"j" + packed

    def keep(self, value: Value) -> None:
        """Remember a value that was just written, so that it is recalled where it stands again."""
        put, self._values[id(value)] = self.remember()
        self.out.append(put)

    def text(self, text: str) -> bytes:
        """Return what puts a text on the stack."""
        known = self._texts.get(text)
        if known is None:
            put, self._texts[text] = self.remember()
            known = unicode(text) + put
        return known

    def name(self, name: Global) -> bytes:
        """Return what puts a name on the stack."""
        known = self._names.get(name)
        if known is None:
            put, self._names[name] = self.remember()
            known = global_name(name) + put
        return known

    def _begin(self, value: Value, path: str) -> None:
        """Note that a value is being written that can't be recalled before it is whole."""
        if id(value) in self._unfinished:
            raise SaveRefused(
                f"{path!r} contains itself, which can't be stored", advice="Break the cycle."
            )
        self._unfinished.add(id(value))

    def _end(self, value: Value) -> None:
        self._unfinished.discard(id(value))
        self.keep(value)

    # --- Values -----------------------------------------------------------------------------

    def _called(self, callee: Global, *arguments: bytes) -> None:
        self.out += (self.name(callee), b"(", *arguments, b"tR")

    def _leaf(self, value: Value) -> None:
        """Write a value that has no others in it, and takes a call."""
        if type(value) is complex:
            self._called(_COMPLEX, _float(value.real), _float(value.imag))
        elif type(value) is bytes:
            self._called(_ENCODE, unicode(value.decode("latin-1")), self.text("latin1"))
        else:
            self._called(_BYTEARRAY, unicode(value.decode("latin-1")), self.text("latin-1"))
        self.keep(value)

    def _list(self, value: list[Value], path: str) -> None:
        self.out.append(b"]")
        self.keep(value)
        self._append(value, path)

    def _append(self, items: list[Value], path: str) -> None:
        if items:
            self.out.append(b"(")
            self._write_items(items, path)
            self.out.append(b"e")

    def _write_items(self, items: Iterable[Value], path: str) -> None:
        for number, item in enumerate(items):
            self.write(item, child_path(path, number))

    def _tuple(self, value: tuple[Value, ...], path: str) -> None:
        if not value:
            self.out.append(b")")
            return
        self._begin(value, path)
        if len(value) > 3:
            self.out.append(b"(")
        self._write_items(value, path)
        self.out.append({1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t"))
        self._end(value)

    def _set(self, value: set[Value] | frozenset[Value], path: str) -> None:
        self._begin(value, path)
        self.out += (self.name(Global("builtins", type(value).__name__)), b"]")
        self._append(list(value), path)
        self.out.append(b"\x85R")
        self._end(value)

    def _dict(self, value: dict[Value, Value], path: str) -> None:
        self.out.append(b"}")
        self.keep(value)
        self._set_items(value, path)

    def _set_items(self, table: dict[Value, Value], path: str) -> None:
        if table:
            out, write, within = self.out, self.write, f"{path}." if path else ""
            out.append(b"(")
            for key, item in table.items():
                if type(key) is str:
                    out.append(self.text(key))
                else:
                    write(key, path)
                    key = repr_key(key)
                write(item, within + key)
            out.append(b"u")

    def _dict_object(self, value: DictObject, path: str) -> None:
        module, _, name = value.class_path.rpartition(".")
        self.out.append(self.name(Global(module, name)))
        if value.class_path == _COUNTER:  # it has no class of its own to be filled by key
            self._begin(value, path)
            self.out.append(b"}")
            self._set_items(value, path)
            self.out.append(b"\x85R")
            self._end(value)
        else:
            self.out.append(b")R")
            self.keep(value)
            self._set_items(value, path)
        if value.attributes:
            self.write(value.attributes, path)
            self.out.append(b"b")

    def _object(self, value: Object, path: str) -> None:
        if value.kwargs:
            raise SaveRefused(
                f"{path!r} is an object that is made with named arguments, which this kind of "
                "file does not have",
                advice="Leave it out, or save as plain values.",
            )
        self._begin(value, path)
        self.write(value.callee, path)
        self.write(value.args, f"{path}.args" if path else "args")
        # What has a state and no arguments is an instance of a class: it is made without its
        # __init__, as pickles make them.
        is_instance = not value.args and value.state is not None
        self.out.append(b"\x81" if is_instance else b"R")
        self._end(value)
        self._append(value.items, path)
        self._set_items(value.pairs, path)
        if value.state is not None:
            self.write(value.state, path if isinstance(value.state, dict) else f"{path}.state")
            self.out.append(b"b")


PickleStream.writers = {
    list: PickleStream._list,
    tuple: PickleStream._tuple,
    dict: PickleStream._dict,
    set: PickleStream._set,
    frozenset: PickleStream._set,
    DictObject: PickleStream._dict_object,
    Object: PickleStream._object,
}


def _refused(value: Value, path: str) -> SaveRefused:
    place = repr(path) if path else "the value"
    if isinstance(value, Array):
        return SaveRefused(
            f"{place} is a NumPy array, which this kind of file does not have",
            advice="Save the tensor of its elements.",
        )
    if isinstance(value, Files):
        return SaveRefused(f"{place} is a folder or an archive", advice="Save one of its files.")
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return SaveRefused(f"{place} is of type {kind}, which is no inert value")


def integer(value: int) -> bytes:
    """Return the opcode of a whole number."""
    if 0 <= value < 256:
        return b"K%c" % value
    if 0 <= value < 65536:
        return b"M" + value.to_bytes(2, "little")
    if -0x80000000 <= value <= 0x7FFFFFFF:
        return b"J" + value.to_bytes(4, "little", signed=True)
    data = encode_long(value)
    if len(data) < 256:
        return b"\x8a%c" % len(data) + data
    return b"\x8b" + len(data).to_bytes(4, "little") + data


def unicode(text: str) -> bytes:
    """Return the opcode of a text."""
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def global_name(name: Global) -> bytes:
    """Return the opcode of a name, under the one of Python 2 where protocol 2 has that."""
    module, attribute = REVERSE_NAME_MAPPING.get((name.module, name.name), (None, name.name))
    if module is None:
        module = REVERSE_IMPORT_MAPPING.get(name.module, name.module)
    if "\n" in module + attribute or not (module and attribute):
        raise SaveRefused(f"the name {str(name)!r} can't be stored")
    return f"c{module}\n{attribute}\n".encode()


def _float(value: float) -> bytes:
    return struct.pack(">cd", b"G", value)


_PLAIN: dict[type, Callable[[Value], bytes]] = {
    type(None): lambda _: b"N",
    bool: FLAGS.__getitem__,
    int: integer,
    float: _float,
}
