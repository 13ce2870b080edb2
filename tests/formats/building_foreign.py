"""Files of other ecosystems, put together byte by byte to their layouts."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

# --- Protocol buffers ----------------------------------------------------------------------------


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | str | bytes) -> bytes:
    """Return a field of a message: a varint, or a length and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


# --- ONNX ----------------------------------------------------------------------------------------


def onnx_tensor(
    name: str,
    kind: int,
    shape: Iterable[int],
    raw: bytes | None = None,
    *,
    location: str | None = None,
) -> bytes:
    dims = b"".join(field(1, size) for size in shape)
    tensor = dims + field(2, kind) + field(8, name)
    if raw is not None:
        tensor += field(9, raw)
    if location is not None:
        tensor += field(13, field(1, "location") + field(2, location)) + field(14, 1)
    return tensor


def onnx_value(name: str, kind: int, shape: Iterable[int | str]) -> bytes:
    dims = [field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape]
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, b"".join(dims))))


def onnx_node(operator: str, *, domain: str = "", attribute: bytes = b"") -> bytes:
    node = field(1, "x") + field(2, "y") + field(4, operator)
    node += field(5, field(1, "a") + attribute) if attribute else b""
    return node + (field(7, domain) if domain else b"")


def onnx_model(
    *,
    nodes: Iterable[bytes] = (),
    initializers: Iterable[bytes] = (),
    opset: int | None = 17,
    more: bytes = b"",
    graph: bytes = b"",
) -> bytes:
    graph += b"".join(field(1, node) for node in nodes) + field(2, "main")
    graph += b"".join(field(5, tensor) for tensor in initializers)
    graph += field(11, onnx_value("x", 1, ["batch", 3])) + field(12, onnx_value("y", 1, [2]))
    head = field(1, 8) + field(2, "pytorch") + field(3, "2.1.0") + field(7, graph)
    return head + more + (b"" if opset is None else field(8, field(1, "") + field(2, opset)))


# --- GGUF ----------------------------------------------------------------------------------------


GGUF_CODES = {**dict(enumerate("BbHhIifB")), 10: "Q", 11: "q", 12: "d"}


def gguf(
    facts: Iterable[tuple[str, int, Any]] = (),
    tensors: Iterable[tuple[str, tuple[int, ...], int, bytes]] = (),
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
) -> bytes:
    """Return a model.

    Args:
        facts: key, type and value; a list's type is (9, that of its items).
        tensors: name, shape in PyTorch's order, type and elements.
        version: that of the format.
        order: `<` or `>`.
        alignment: of the elements.
    """
    facts, tensors = list(facts), list(tensors)
    wide = "I" if version == 1 else "Q"
    out = b"GGUF" + struct.pack(f"{order}I2{wide}", version, len(tensors), len(facts))

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack(f"{order}{wide}", len(data)) + data

    def encode(kind: int, value: Any) -> bytes:
        if kind == 8:
            return text(value)
        if kind == 9:
            inner, items = value
            count = struct.pack(f"{order}I{wide}", inner, len(items))
            return count + b"".join(encode(inner, item) for item in items)
        return struct.pack(order + GGUF_CODES[kind], value)

    for key, kind, value in facts:
        out += text(key) + struct.pack(f"{order}I", kind) + encode(kind, value)
    data = b""
    for name, shape, kind, elements in tensors:
        sizes = struct.pack(f"{order}{len(shape)}{wide}", *reversed(shape))
        out += text(name) + struct.pack(f"{order}I", len(shape)) + sizes
        out += struct.pack(f"{order}IQ", kind, len(data))
        data += elements + bytes(-len(elements) % alignment)
    return out + bytes(-len(out) % alignment) + data


# --- HDF5 ----------------------------------------------------------------------------------------


class Hdf5:
    """A file whose root group has attributes that are texts, and names."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.end = 0

    def put(self, data: bytes) -> int:
        """Put a block behind the others, and return its place."""
        place = self.end
        self.blocks[place] = data
        self.end += len(data) + -len(data) % 8
        return place

    def bytes(self) -> bytes:
        out = bytearray(self.end)
        for place, data in self.blocks.items():
            out[place : place + len(data)] = data
        return bytes(out)

    def heap_text(self, text: str) -> bytes:
        """Return an attribute's value that stands in a global heap."""
        data = text.encode()
        entry = struct.pack("<HH4xQ", 1, 1, len(data)) + data + bytes(-len(data) % 8)
        size = max(4096, 16 + len(entry) + 16)
        free = size - 16 - len(entry)
        block = b"GCOL" + struct.pack("<B3xQ", 1, size) + entry
        heap = self.put(block + struct.pack("<HH4xQ", 0, 0, free) + bytes(free - 16))
        return struct.pack("<IQI", len(data), heap, 1)

    def names(self, names: list[str], places: dict[str, int] | None = None) -> tuple[int, int]:
        """Return the places of a B-tree and of a heap that hold the names of a group.

        `places` are those of the object headers; a name without one leads nowhere.
        """
        data = bytes(8)
        entries = b""
        for name in names:
            place = (places or {}).get(name, (1 << 64) - 1)
            entries += struct.pack("<QQ24x", len(data), place)
            data += name.encode() + b"\0"
        segment = self.put(data)
        heap = self.put(b"HEAP" + struct.pack("<B3xQQQ", 0, len(data), 1, segment))
        leaf = self.put(b"SNOD" + struct.pack("<BxH", 1, len(names)) + entries.ljust(320, b"\0"))
        none = (1 << 64) - 1
        node = struct.pack("<BBHQQQQQ", 0, 0, 1, none, none, 0, leaf, len(data))
        tree = self.put((b"TREE" + node).ljust(544, b"\0"))
        return tree, heap


def data_set(kind: bytes, shape: tuple[int, ...], place: int) -> bytes:
    """Return the object header of a data set of this type, whose elements are at a place."""
    space = struct.pack(f"<BBB5x{len(shape)}Q", 1, len(shape), 0, *shape)
    return old_header([(1, space), (3, kind), (8, struct.pack("<BBQQ", 3, 1, place, 0))])


def hdf5_number(kind: int, bits: int, nbytes: int, exponent_bits: int = 8) -> bytes:
    """Return the type of a number: 0 for integers, 1 for reals, 8 for an enumeration."""
    layout = struct.pack("<HHBBBBI", 0, 8 * nbytes, 23, exponent_bits, 0, 23, 127)
    return struct.pack("<BBxxI", 0x10 | kind, bits, nbytes) + layout


FREE_TEXT = struct.pack("<B3BI", 0x19, 1, 0, 0, 16) + struct.pack("<B3BI", 0x13, 0, 0, 0, 1)
SCALAR = struct.pack("<BBB5x", 1, 0, 0)


def attribute(name: str, kind: bytes, space: bytes, value: bytes) -> bytes:
    """Return an attribute message of version 1."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 8)

    label = name.encode() + b"\0"
    head = struct.pack("<BxHHH", 1, len(label), len(kind), len(space))
    return head + padded(label) + padded(kind) + padded(space) + value


def fixed_text(name: str, text: str) -> bytes:
    """Return an attribute message whose text stands in it."""
    data = text.encode()
    return attribute(name, struct.pack("<B3BI", 0x13, 0, 0, 0, len(data)), SCALAR, data)


def texts_attribute(name: str, texts: list[str], *, version: int) -> bytes:
    """Return an attribute message of several texts of one length."""
    size = len(texts[0])
    kind = struct.pack("<B3BI", 0x13, 0, 0, 0, size)
    head = struct.pack("<BBB5x", 1, 1, 0) if version == 1 else struct.pack("<BBBB", 2, 1, 0, 1)
    return attribute(name, kind, head + struct.pack("<Q", len(texts)), "".join(texts).encode())


def old_header(messages: list[tuple[int, bytes]]) -> bytes:
    """Return an object header of version 1."""
    body = b""
    for kind, data in messages:
        data += bytes(-len(data) % 8)
        body += struct.pack("<HHB3x", kind, len(data), 0) + data
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def new_header(messages: list[tuple[int, bytes]]) -> bytes:
    """Return an object header of version 2; its checksum, which nobody here reads, is missing."""
    body = b"".join(struct.pack("<BHB", kind, len(data), 0) + data for kind, data in messages)
    return b"OHDR" + struct.pack("<BBI", 2, 2, len(body)) + body + bytes(4)


def hdf5(
    texts: dict[str, str], names: list[str], *, version: int = 0, in_heap: tuple[str, ...] = ()
) -> bytes:
    """Return a file with these attributes and names; `in_heap` are kept in a global heap."""
    file = Hdf5()
    file.end = 96
    messages = []
    for name, text in texts.items():
        if name in in_heap:
            value = file.heap_text(text)
            messages.append((0x0C, attribute(name, FREE_TEXT, SCALAR, value)))
        else:
            messages.append((0x0C, fixed_text(name, text)))
    if version == 0:
        tree, heap = file.names(names)
        messages.append((0x11, struct.pack("<QQ", tree, heap)))
        root = file.put(old_header(messages))
    else:
        for name in names:
            link = struct.pack("<BBB", 1, 0, len(name)) + name.encode() + b"\xff" * 8
            messages.append((0x06, link))
        root = file.put(new_header(messages))
    return superblock(version, file.end, root) + file.bytes()[96:]


def superblock(version: int, end: int, root: int) -> bytes:
    magic = b"\x89HDF\r\n\x1a\n"
    none = (1 << 64) - 1
    if version == 0:
        sizes = bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
        return magic + sizes + struct.pack("<QQQQQQII16x", 0, none, end, none, 0, root, 0, 0)
    start = magic + bytes([version, 8, 8, 0])
    return (start + struct.pack("<QQQQ4x", 0, none, end, root)).ljust(96, b"\0")


# --- ExecuTorch ----------------------------------------------------------------------------------


class Flatbuffer:
    """A flatbuffer that is written front to back: parents first, children behind them."""

    def __init__(self, magic: bytes, header: bytes = b"") -> None:
        self.data = bytearray(4) + magic + header

    def table(self, widths: dict[int, int]) -> tuple[int, dict[int, int]]:
        """Add a table with fields of these widths; return its place and those of the fields."""
        count = max(widths, default=-1) + 1
        offsets, position = [0] * count, 4
        for index, width in sorted(widths.items()):
            offsets[index] = position
            position += width
        start = len(self.data)
        self.data += struct.pack(f"<2H{count}H", 4 + 2 * count, position, *offsets)
        place = len(self.data)
        self.data += struct.pack("<i", place - start) + bytes(position - 4)
        return place, {index: place + offsets[index] for index in widths}

    def point(self, place: int) -> None:
        """Make the u32 at a place lead to what is added next."""
        self.data[place : place + 4] = struct.pack("<I", len(self.data) - place)

    def lead(self, place: int, table: int) -> None:
        """Make the u32 at a place lead to a table."""
        self.data[place : place + 4] = struct.pack("<I", table - place)

    def text(self, place: int, text: str) -> None:
        self.point(place)
        self.data += struct.pack("<I", len(text)) + text.encode() + b"\0"

    def items(self, place: int, count: int) -> list[int]:
        """Add a list of tables; return the places of the items."""
        self.point(place)
        self.data += struct.pack("<I", count) + bytes(4 * count)
        return [len(self.data) - 4 * count + 4 * index for index in range(count)]


def executorch(*, header: bytes = b"", version: int = 0) -> bytes:
    """Return a program with one method of two operators, and a backend."""
    buffer = Flatbuffer(b"ET12", header)
    root, at = buffer.table({0: 4, 1: 4})
    buffer.lead(0, root)
    buffer.data[at[0] : at[0] + 4] = struct.pack("<I", version)
    (plan_item,) = buffer.items(at[1], 1)
    plan, fields = buffer.table({0: 4, 6: 4, 7: 4})
    buffer.lead(plan_item, plan)
    buffer.text(fields[0], "forward")
    for item, names in zip(
        buffer.items(fields[6], 2), [("aten::add", "out"), ("aten::mm", "")], strict=True
    ):
        table, parts = buffer.table({0: 4, 1: 4} if names[1] else {0: 4})
        buffer.lead(item, table)
        for index, place in parts.items():
            buffer.text(place, names[index])
    (item,) = buffer.items(fields[7], 1)
    table, parts = buffer.table({0: 4})
    buffer.lead(item, table)
    buffer.text(parts[0], "XnnpackBackend")
    return bytes(buffer.data)


def extended_header(program_nbytes: int, start: int, nbytes: int | None = None) -> bytes:
    more = b"" if nbytes is None else struct.pack("<Q", nbytes)
    return b"eh00" + struct.pack("<IQQ", 24 + len(more), program_nbytes, start) + more


# --- Torch for Lua -------------------------------------------------------------------------------


class Lua:
    """What Torch for Lua writes, in either form."""

    def __init__(self, *, digits: bool = False) -> None:
        self.digits = digits
        self.data = b""
        self.num_objects = 0

    def numbers(self, code: str, *values: float) -> Lua:
        """Add an array of numbers: i, q, f or d."""
        if self.digits:
            self.data += " ".join(f"{value:.17g}" for value in values).encode()
            self.data += b"\n" if values else b""
        else:
            self.data += struct.pack(f"<{len(values)}{code}", *values)
        return self

    def raw(self, data: bytes) -> Lua:
        self.numbers("i", len(data))
        self.data += data + (b"\n" if self.digits else b"")
        return self

    def new(self, kind: int) -> int:
        self.num_objects += 1
        self.numbers("i", kind).numbers("i", self.num_objects)
        return self.num_objects

    def instance(self, name: str, *, version: bool = True) -> Lua:
        self.new(4)
        if version:
            self.raw(b"V 1")
        return self.raw(name.encode())

    def add(self, value: Any) -> Lua:
        """Add a Python value as Lua would write it."""
        if value is None:
            self.numbers("i", 0)
        elif isinstance(value, bool):
            self.numbers("i", 5).numbers("i", value)
        elif isinstance(value, int | float):
            self.numbers("i", 1).numbers("d", value)
        elif isinstance(value, str):
            self.numbers("i", 2).raw(value.encode())
        elif isinstance(value, bytes):  # a function
            self.new(8)
            self.raw(value).add({})
        else:
            self.new(3)
            self.numbers("i", len(value))
            for key, item in value.items():
                self.add(key)
                item(self) if callable(item) else self.add(item)
        return self

    def tensor(self, shape: tuple[int, ...], elements: list[float], *, offset: int = 1) -> Lua:
        stride = [1]
        for size in shape[:0:-1]:
            stride.insert(0, stride[0] * size)
        self.instance("torch.FloatTensor").numbers("i", len(shape))
        self.numbers("q", *shape).numbers("q", *stride[-len(shape) :]).numbers("q", offset)
        return (
            self.instance("torch.FloatStorage").numbers("q", len(elements)).numbers("f", *elements)
        )


# --- PaddlePaddle --------------------------------------------------------------------------------


def paddle_program() -> bytes:
    variable = field(1, "fc.w_0") + field(2, field(1, 7))
    operators = [field(3, name) for name in ("feed", "matmul_v2", "matmul_v2", "fetch")]
    block = field(1, 0) + field(2, -1) + field(3, variable)
    block += b"".join(field(4, operator) for operator in operators)
    return field(1, block) + field(4, field(1, 2_000_000))


def paddle_parameter(kind: int, shape: tuple[int, ...], elements: bytes) -> bytes:
    desc = field(1, kind) + b"".join(field(2, size) for size in shape)
    return struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + elements
