"""Inert values as the pickle of a torch zip: what `formats.torch` reads, written again.

The stream is of protocol 2, and has only opcodes that `torch.load(weights_only=True)` knows. It is
put together here, since Python's own pickler writes live objects, and there are none. A tensor is a
call of a rebuild function on a persistent id, as `torch.save` writes it. Names and texts stand in
the stream once and are recalled after that; so is each list, dict, tensor or object that is in the
tree at two places, which keeps it one.

Where a tensor starts in its storage, and how long that is, follows from all tensors that use it. So
these numbers are left open while the tree is walked, and filled in by `Pickling.finished`.

Source: Lib/pickle.py of CPython (`save_*`), torch/_tensor.py (`__reduce_ex__`), torch/_utils.py.
"""

from __future__ import annotations

import struct
from _compat_pickle import REVERSE_IMPORT_MAPPING, REVERSE_NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from pickle import encode_long

from torchkeep.contents import (
    ITEM_SIZE,
    Array,
    DictObject,
    Files,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    repr_key,
)
from torchkeep.errors import SaveRefused
from torchkeep.formats.torch.objects import STORAGE_DTYPES
from torchkeep.writing.layouts import recipe

Place = tuple[int, int]
"""Where in its storage, in bytes, what is kept of it starts, and how long that is."""

_CLASSES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}
"""The classes that name a dtype in a file. Later dtypes have none, and use an untyped storage."""

_REBUILD_TYPED = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_UNTYPED = Global("torch._utils", "_rebuild_tensor_v3")
_REBUILD_QUANTIZED = Global("torch._utils", "_rebuild_qtensor")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_ORDERED = Global("collections", "OrderedDict")
_COUNTER = "collections.Counter"
_ENCODE = Global("_codecs", "encode")
_FLAGS = {False: b"\x89", True: b"\x88"}
_OPEN = b""
"""Stands in the stream for a number that is not known yet."""


class Pickling:
    """A tree that is being pickled.

    Args:
        root: inert values, as `contents` lists them, without `Array` and `Files`.

    Attributes:
        tensors: each tensor by its path: keys and positions from the root, joined by dots. What a
            tensor is made of is under its own path.
        storages: the tensors' storages in the order of their keys, which are "0", "1", ...

    Raises:
        SaveRefused: a value has no place in such a pickle (its path is named), or a tuple, a set or
            an object's argument contains itself.
    """

    def __init__(self, root: Value) -> None:
        self.tensors: dict[str, TensorEntry] = {}
        self.storages: dict[int, Storage] = {}
        self._out: list[bytes] = [b"\x80\x02"]
        self._holes: list[tuple[int, TensorEntry, int]] = []
        self._num_remembered = 0
        self._values: dict[int, bytes] = {}
        self._texts: dict[str, bytes] = {}
        self._names: dict[Global, bytes] = {}
        self._sizes: dict[tuple[int, ...], bytes] = {}
        self._keys: dict[int, bytes] = {}
        self._part_names: dict[int, str] = {}
        self._unfinished: set[int] = set()
        try:
            self._write(root, "")
        except RecursionError:
            raise SaveRefused(
                "the value is nested too deeply to be stored", advice="Flatten it."
            ) from None
        self._out.append(b".")

    def finished(self, places: Mapping[int, Place]) -> bytes:
        """Return the stream, given the place of each storage by the storage's `id`."""
        out = self._out
        for index, entry, width in self._holes:
            begin, nbytes = places[id(entry.storage)]
            offset = entry.storage_offset - begin // ITEM_SIZE[entry.dtype] if entry.numel else 0
            out[index] = _integer(nbytes // width)
            out[index + 2] = _integer(offset)
        return b"".join(out)

    # --- What values share ------------------------------------------------------------------

    def _write(self, value: Value, path: str) -> None:
        write = _WRITERS.get(type(value))
        if write is None:
            raise _refused(value, path)
        write(self, value, path)

    def _remember(self) -> tuple[bytes, bytes]:
        """Return what puts the value on top of the stack into the memo, and what recalls it."""
        index = self._num_remembered
        self._num_remembered += 1
        if index < 256:
            return b"q%c" % index, b"h%c" % index
        packed = index.to_bytes(4, "little")
        return b"r" + packed, b"j" + packed

    def _recall(self, value: Value) -> bool:
        """Write a value that stands in the stream already once more; whether there was one."""
        known = self._values.get(id(value))
        if known is None:
            return False
        self._out.append(known)
        return True

    def _keep(self, value: Value) -> None:
        put, self._values[id(value)] = self._remember()
        self._out.append(put)

    def _text(self, text: str) -> bytes:
        known = self._texts.get(text)
        if known is None:
            put, self._texts[text] = self._remember()
            known = _unicode(text) + put
        return known

    def _name(self, name: Global) -> bytes:
        known = self._names.get(name)
        if known is None:
            put, self._names[name] = self._remember()
            known = _global(name) + put
        return known

    def _call(self, callee: Global, *arguments: bytes) -> None:
        self._out += (self._name(callee), b"(", *arguments, b"tR")

    def _begin(self, value: Value, path: str) -> None:
        """Note that a value is being written that can't be recalled before it is whole."""
        if id(value) in self._unfinished:
            raise SaveRefused(
                f"{path!r} contains itself, which can't be stored", advice="Break the cycle."
            )
        self._unfinished.add(id(value))

    def _end(self, value: Value) -> None:
        self._unfinished.discard(id(value))
        self._keep(value)

    # --- Plain values -----------------------------------------------------------------------

    def _none(self, value: None, path: str) -> None:
        self._out.append(b"N")

    def _bool(self, value: bool, path: str) -> None:
        self._out.append(_FLAGS[value])

    def _int(self, value: int, path: str) -> None:
        self._out.append(_integer(value))

    def _float(self, value: float, path: str) -> None:
        self._out.append(struct.pack(">cd", b"G", value))

    def _complex(self, value: complex, path: str) -> None:
        parts = (struct.pack(">cd", b"G", part) for part in (value.real, value.imag))
        self._call(Global("builtins", "complex"), *parts)

    def _str(self, value: str, path: str) -> None:
        self._out.append(self._text(value))

    def _bytes(self, value: bytes, path: str) -> None:
        if not self._recall(value):
            latin = _unicode(value.decode("latin-1"))
            self._call(_ENCODE, latin, self._text("latin1"))
            self._keep(value)

    def _bytearray(self, value: bytearray, path: str) -> None:
        if not self._recall(value):
            latin = _unicode(value.decode("latin-1"))
            self._call(Global("builtins", "bytearray"), latin, self._text("latin-1"))
            self._keep(value)

    def _global(self, value: Global, path: str) -> None:
        self._out.append(self._name(value))

    # --- Containers -------------------------------------------------------------------------

    def _list(self, value: list[Value], path: str) -> None:
        if not self._recall(value):
            self._out.append(b"]")
            self._keep(value)
            self._append(value, path)

    def _append(self, items: Iterable[Value], path: str) -> None:
        if items:
            self._out.append(b"(")
            self._write_items(items, path)
            self._out.append(b"e")

    def _write_items(self, items: Iterable[Value], path: str) -> None:
        for number, item in enumerate(items):
            self._write(item, f"{path}.{number}" if path else str(number))

    def _tuple(self, value: tuple[Value, ...], path: str) -> None:
        if not value:
            self._out.append(b")")
        elif not self._recall(value):
            self._begin(value, path)
            if len(value) > 3:
                self._out.append(b"(")
            self._write_items(value, path)
            self._out.append({1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t"))
            self._end(value)

    def _set(self, value: set[Value] | frozenset[Value], path: str) -> None:
        if not self._recall(value):
            self._begin(value, path)
            self._out += (self._name(Global("builtins", type(value).__name__)), b"]")
            self._append(list(value), path)
            self._out.append(b"\x85R")
            self._end(value)

    def _dict(self, value: dict[Value, Value], path: str) -> None:
        if not self._recall(value):
            self._out.append(b"}")
            self._keep(value)
            self._set_items(value, path)

    def _set_items(self, table: dict[Value, Value], path: str) -> None:
        if table:
            out, write, within = self._out, self._write, f"{path}." if path else ""
            out.append(b"(")
            for key, item in table.items():
                if type(key) is str:
                    out.append(self._text(key))
                else:
                    write(key, path)
                    key = repr_key(key)
                write(item, within + key)
            out.append(b"u")

    def _dict_object(self, value: DictObject, path: str) -> None:
        if self._recall(value):
            return
        module, _, name = value.class_path.rpartition(".")
        self._out.append(self._name(Global(module, name)))
        if value.class_path == _COUNTER:  # it has no class of its own to be filled by key
            self._begin(value, path)
            self._out.append(b"}")
            self._set_items(value, path)
            self._out.append(b"\x85R")
            self._end(value)
        else:
            self._out.append(b")R")
            self._keep(value)
            self._set_items(value, path)
        if value.attributes:
            self._write(value.attributes, path)
            self._out.append(b"b")

    def _object(self, value: Object, path: str) -> None:
        if self._recall(value):
            return
        if value.kwargs:
            raise SaveRefused(
                f"{path!r} is an object that is made with named arguments, which this kind of "
                "file does not have",
                advice="Leave it out, or save as plain values.",
            )
        self._begin(value, path)
        self._write(value.callee, path)
        self._write(value.args, f"{path}.args" if path else "args")
        # What has a state and no arguments is an instance of a class: it is made without its
        # __init__, as pickles make them.
        is_instance = not value.args and value.state is not None
        self._out.append(b"\x81" if is_instance else b"R")
        self._end(value)
        self._append(value.items, path)
        self._set_items(value.pairs, path)
        if value.state is not None:
            self._write(value.state, path if isinstance(value.state, dict) else f"{path}.state")
            self._out.append(b"b")

    # --- Tensors ----------------------------------------------------------------------------

    def _tensor(self, entry: TensorEntry, path: str) -> None:
        if not self._recall(entry):
            if entry.is_parameter:
                self._parameter(entry, path)
            else:
                self._plain_tensor(entry, path)
            self._keep(entry)

    def _parameter(self, entry: TensorEntry, path: str) -> None:
        self._out += (self._name(_REBUILD_PARAMETER), b"(")
        # The very entry, so that its digest is that of the parameter.
        self._plain_tensor(entry, path, requires_grad=False)
        self._out += (_FLAGS[entry.requires_grad], self._name(_ORDERED), b")RtR")

    def _plain_tensor(
        self, entry: TensorEntry, path: str, *, requires_grad: bool | None = None
    ) -> None:
        if requires_grad is None:
            requires_grad = entry.requires_grad
        if entry.layout != "strided" or entry.is_composite:
            self._part_names |= {id(part): f"{path}.{name}" for name, part in entry.parts}
            self._write(recipe(entry, path), path)
            return
        path = self._part_names.get(id(entry), path)
        while path in self.tensors:  # {"a": {"b": ..}, "a.b": ..} has two of the same path
            path += "~"
        self.tensors[path] = entry
        kind = _CLASSES.get(entry.dtype)
        rebuild = _REBUILD_TYPED if kind else _REBUILD_UNTYPED
        self._out += (self._name(_REBUILD_QUANTIZED if entry.quantizer else rebuild), b"(")
        self._view(entry, kind or "UntypedStorage")
        if entry.quantizer:
            self._part_names |= {id(part): f"{path}.{name}" for name, part in entry.parts}
            self._write(_quantizer(entry), path)
        # A dictionary of its own: hooks of one tensor are not another's.
        self._out += (_FLAGS[requires_grad], self._name(_ORDERED), b")R")
        if kind is None:
            self._out.append(self._name(Global("torch", entry.dtype)))
        if entry.is_conj or entry.is_neg:
            self._write({"conj": entry.is_conj, "neg": entry.is_neg}, path)
        self._out.append(b"tR")

    def _view(self, entry: TensorEntry, kind: str) -> None:
        """Write the storage and the view of it, two numbers left open."""
        storage, out = entry.storage, self._out
        width = ITEM_SIZE[STORAGE_DTYPES[kind]]
        out += (
            b"(",
            self._text("storage"),
            self._name(Global("torch.storage" if kind == "UntypedStorage" else "torch", kind)),
            self._key(storage),
            self._text(storage.device),
        )
        self._holes.append((len(out), entry, width))
        out += (_OPEN, b"tQ", _OPEN, self._tuple_of(entry.shape), self._tuple_of(entry.stride))

    def _key(self, storage: Storage) -> bytes:
        known = self._keys.get(id(storage))
        if known is None:
            known = self._keys[id(storage)] = _unicode(str(len(self.storages)))
            self.storages[id(storage)] = storage
        return known

    def _tuple_of(self, numbers: tuple[int, ...]) -> bytes:
        known = self._sizes.get(numbers)
        if known is None:
            known = self._sizes[numbers] = b"(" + b"".join(map(_integer, numbers)) + b"t"
        return known


_WRITERS: dict[type, Callable[[Pickling, Value, str], None]] = {
    type(None): Pickling._none,
    bool: Pickling._bool,
    int: Pickling._int,
    float: Pickling._float,
    complex: Pickling._complex,
    str: Pickling._str,
    bytes: Pickling._bytes,
    bytearray: Pickling._bytearray,
    list: Pickling._list,
    tuple: Pickling._tuple,
    dict: Pickling._dict,
    set: Pickling._set,
    frozenset: Pickling._set,
    DictObject: Pickling._dict_object,
    Object: Pickling._object,
    Global: Pickling._global,
    TensorEntry: Pickling._tensor,
}


def _quantizer(entry: TensorEntry) -> tuple[Value, ...]:
    """Return the scheme, then scale and zero point, or their tensors or lists and the axis."""
    scheme, *rest = entry.quantizer
    return (Global("torch", scheme), *(part for _, part in entry.parts), *rest)


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


def _integer(value: int) -> bytes:
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


def _unicode(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _global(name: Global) -> bytes:
    """Return the opcode of a name, under the one of Python 2 where protocol 2 has that."""
    module, attribute = REVERSE_NAME_MAPPING.get((name.module, name.name), (None, name.name))
    if module is None:
        module = REVERSE_IMPORT_MAPPING.get(name.module, name.module)
    if "\n" in module + attribute or not (module and attribute):
        raise SaveRefused(f"the name {str(name)!r} can't be stored")
    return f"c{module}\n{attribute}\n".encode()
