"""HDF5 files, Keras models first of all.

Layout: a superblock with the widths O of offsets and L of lengths, the end of the file and the
place of the root group's object header. An object header is a list of messages; those used here:

    0x06  a link: the name of something in the group
    0x0C  an attribute: name, type, shape, value; a text of free length stands in a global heap
    0x10  a continuation: where the list goes on
    0x11  a symbol table: a B-tree whose leaves name what is in the group, the names in a heap
    0x02, 0x15  the links, the attributes are in structures for many of them

A Keras model has its layers as JSON in the root's attribute `model_config`.

Limits: only the root group is looked at. The structures for many links or attributes are not read;
a text search stands in for them. Files whose superblock does not come first are not recognised.

Source: "HDF5 File Format Specification Version 3.0", https://support.hdfgroup.org; keras's
src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.ecosystems.cursor import Cursor
from torchkeep.formats.ecosystems.foreign import not_loaded
from torchkeep.formats.ecosystems.keras import find_code, is_config, read_json, shown_model
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LINK_INFO, _LINK, _ATTRIBUTE, _CONTINUATION, _SYMBOLS, _ATTRIBUTE_INFO = 2, 6, 12, 16, 17, 21
_TEXT, _FREE_LENGTH = 3, 9
"""Classes of types."""
_WIDTHS = (2, 4, 8)
_MOST_BLOCKS = 10_000
_MOST_NAMES = 100
_LONGEST_NAME = 1 << 10
_LONGEST_TEXT = 1 << 24
_LONGEST_FACT = 200
_SEARCHED_NBYTES = 1 << 24


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with HDF5's signature."""
    del nbytes
    return head.startswith(_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what is in the root group. Data sets are not looked at."""
    group = _Group(file, limits)
    group.read()
    texts = group.texts
    config = read_json(texts.get("model_config", ""))
    findings = find_code(config)
    if group.is_dense and not findings and _mentions_lambda(file):
        text = "the file mentions a Lambda layer, whose bytecode Keras would run"
        findings = [Finding("keras-lambda", "needs-trust", "", text)]
    facts = {key: text for key, text in texts.items() if len(text) <= _LONGEST_FACT}
    if group.names:
        facts["names"] = ", ".join(group.names)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        metadata=facts,
        findings=tuple(findings),
        kind=_kind(group, config),
        problem=not_loaded("an HDF5 file"),
    )


def _kind(group: _Group, config: Any) -> str:
    texts = group.texts
    if "keras_version" in texts or is_config(config):
        version = shortened(texts.get("keras_version", ""))
        backend = shortened(texts.get("backend", ""))
        details = [version and f"Keras {version}", backend and f"backend {backend}"]
        known = ", ".join(detail for detail in details if detail)
        what = "Keras model in HDF5" if is_config(config) else "Keras weights in HDF5"
        model = f": {shown_model(config)}" if is_config(config) else ""
        return f"{what}{f' ({known})' if known else ''}{model}"
    names = ", ".join(shortened(name) for name in group.names[:4])
    if not names:
        return "HDF5 file"
    return f"HDF5 file: {names}{', ...' if len(group.names) > 4 else ''}"


def _mentions_lambda(file: Readable) -> bool:
    """Whether a Lambda layer is spelled out in the file's start."""
    data = file.read_at(0, min(file.nbytes, _SEARCHED_NBYTES))
    return any(mark in data for mark in (b'"Lambda"', b'"__lambda__"'))


@dataclass(frozen=True, slots=True)
class _Message:
    """A message of an object header."""

    type: int
    data: Cursor


class _Group:
    """The root group that is being read, and what was read of it."""

    def __init__(self, file: Readable, limits: Limits) -> None:
        self.whole = Cursor.over(file, limits)
        self.wide_offset = 8
        """Bytes of an offset."""
        self.wide_length = 8
        """Bytes of a length."""
        self.names: list[str] = []
        self.texts: dict[str, str] = {}
        self.is_dense = False
        """Whether attributes or links are in structures that are not read."""
        self.seen: set[int] = set()
        self.num_entries = 0
        """Entries of global heaps that were stepped over."""

    def read(self) -> None:
        """Read the superblock and the root group."""
        for message in self.messages(self.read_superblock()):
            if message.type == _ATTRIBUTE:
                self.read_attribute(message.data)
            elif message.type == _LINK:
                self.add_name(self.link_name(message.data))
            elif message.type == _SYMBOLS:
                tree, heap = self.offset(message.data), self.offset(message.data)
                self.read_symbols(tree, self.heap_data(heap))
            elif message.type in (_ATTRIBUTE_INFO, _LINK_INFO):
                self.is_dense |= self.has_heap(message)

    # --- Places --------------------------------------------------------------------------------

    def offset(self, cursor: Cursor) -> int:
        return cursor.number(self.wide_offset)

    def length(self, cursor: Cursor) -> int:
        return cursor.number(self.wide_length)

    def block(self, place: int, signature: bytes = b"") -> Cursor:
        """Return a cursor at a structure, behind its signature; no structure is read twice."""
        if place in self.seen or len(self.seen) >= _MOST_BLOCKS:
            raise DamagedFile(f"the HDF5 structures at byte {place:,} go round in circles")
        self.seen.add(place)
        cursor = self.whole.at(place)
        if cursor.take(len(signature)) != signature:
            raise DamagedFile(f"no {signature.decode()} is at byte {place:,}, where one should be")
        return cursor

    def read_superblock(self) -> int:
        """Return the place of the root group's object header."""
        cursor = self.whole.at(len(_MAGIC))
        version = cursor.number(1)
        if version > 3:
            raise UnsupportedContent(f"this is an HDF5 file of version {version}")
        cursor.skip(4 if version < 2 else 0)
        self.wide_offset, self.wide_length = cursor.number(1), cursor.number(1)
        if self.wide_offset not in _WIDTHS or self.wide_length not in _WIDTHS:
            raise DamagedFile("the HDF5 superblock has impossible widths")
        cursor.skip((9, 13, 1, 1)[version])
        base, _ = self.offset(cursor), self.offset(cursor)
        end = self.offset(cursor)
        if base + end > self.whole.end:
            raise DamagedFile(
                f"the file is truncated: it should have {base + end:,} bytes, and has "
                f"{self.whole.end:,}",
                advice="Copy or download it again.",
            )
        if version < 2:  # the root's entry stands here: a name's place comes first
            cursor.skip(2 * self.wide_offset)
        return self.offset(cursor)

    # --- Object headers ------------------------------------------------------------------------

    def messages(self, place: int) -> Iterator[_Message]:
        """Yield the messages of the object header at this place."""
        cursor = self.block(place)
        if cursor.take(4) == b"OHDR":
            yield from self.new_messages(cursor)
            return
        cursor = self.whole.at(place)
        if cursor.number(1) != 1:
            raise DamagedFile(f"no HDF5 object header is at byte {place:,}")
        cursor.skip(7)
        blocks = [cursor.part(cursor.number(4) + 4)]
        blocks[0].skip(4)
        while blocks:
            block = blocks.pop(0)
            while block.remaining >= 8:
                message, nbytes = block.number(2), block.number(2)
                block.skip(4)
                data = block.part(nbytes)
                if message == _CONTINUATION:
                    start = self.offset(data)
                    blocks.append(self.block(start).part(self.length(data)))
                else:
                    yield _Message(message, data)

    def new_messages(self, cursor: Cursor) -> Iterator[_Message]:
        """Yield the messages of an object header of version 2, whose signature was read."""
        cursor.skip(1)
        flags = cursor.number(1)
        cursor.skip((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        blocks = [cursor.part(cursor.number(1 << (flags & 3)))]
        order = 2 if flags & 4 else 0
        while blocks:
            block = blocks.pop(0)
            while block.remaining >= 4 + order:
                message, nbytes = block.number(1), block.number(2)
                block.skip(1 + order)
                data = block.part(nbytes)
                if message == _CONTINUATION:
                    start = self.offset(data)
                    inner = self.length(data) - 8  # a signature and a checksum
                    blocks.append(self.block(start, b"OCHK").part(inner))
                else:
                    yield _Message(message, data)

    def has_heap(self, message: _Message) -> bool:
        """Whether a message about many links or attributes says where they are."""
        data = message.data
        data.skip(1)
        flags = data.number(1)
        index = 8 if message.type == _LINK_INFO else 2
        data.skip(index if flags & 1 else 0)
        return data.take(self.wide_offset) != b"\xff" * self.wide_offset

    # --- Names ---------------------------------------------------------------------------------

    def add_name(self, name: str) -> None:
        if len(self.names) < _MOST_NAMES:
            self.names.append(name)

    def link_name(self, data: Cursor) -> str:
        data.skip(1)
        flags = data.number(1)
        data.skip((1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0))
        return data.text(data.count(1 << (flags & 3), 1), _LONGEST_NAME)

    def heap_data(self, place: int) -> Cursor:
        """Return a cursor over the names in a local heap."""
        cursor = self.block(place, b"HEAP")
        cursor.skip(4)
        nbytes = self.length(cursor)
        cursor.skip(self.wide_length)
        return self.block(self.offset(cursor)).part(nbytes)

    def read_symbols(self, place: int, heap: Cursor) -> None:
        """Add the names in a B-tree of symbol tables."""
        waiting = [place]
        while waiting:
            cursor = self.block(waiting.pop(0))
            if (signature := cursor.take(4)) == b"SNOD":
                self.read_leaf(cursor, heap)
                continue
            if signature != b"TREE":
                raise DamagedFile(f"no HDF5 symbol table is at byte {cursor.position - 4:,}")
            cursor.skip(2)
            count = cursor.number(2)
            cursor.skip(2 * self.wide_offset)
            for _ in range(count):
                cursor.skip(self.wide_length)
                waiting.append(self.offset(cursor))

    def read_leaf(self, cursor: Cursor, heap: Cursor) -> None:
        cursor.skip(2)
        for _ in range(cursor.number(2)):
            start = self.offset(cursor)
            cursor.skip(self.wide_offset + 24)
            heap.need(start)
            left = heap.remaining - start
            data = heap.at(heap.position + start).take(min(left, _LONGEST_NAME))
            self.add_name(data.partition(b"\0")[0].decode("utf-8", "replace"))

    # --- Attributes ----------------------------------------------------------------------------

    def read_attribute(self, data: Cursor) -> None:
        """Keep an attribute if it is a text, or the number of its texts."""
        version = data.number(1)
        if not 1 <= version <= 3:
            raise DamagedFile(f"an HDF5 attribute is of version {version}")
        data.skip(1)
        sizes = [data.number(2) for _ in range(3)]
        data.skip(1 if version == 3 else 0)
        parts = []
        for size in sizes:
            part = data.part(size)
            data.skip(-size % 8 if version == 1 else 0)
            parts.append(part)
        name = parts[0].text(parts[0].remaining, _LONGEST_NAME).rstrip("\0")
        text = self.text_of(parts[1], _count(parts[2], self.wide_length), data)
        if text is not None:
            self.texts[name] = text

    def text_of(self, kind: Cursor, count: int, data: Cursor) -> str | None:
        """Return the text that is a value, how many it has, or None if it has none."""
        head = kind.number(1)
        class_bits = kind.number(3)
        nbytes = kind.number(4)
        is_text = head & 15 == _TEXT or (head & 15 == _FREE_LENGTH and class_bits & 15 == 1)
        if not is_text:
            return None
        if count != 1:
            return counted(count, "text")
        if head & 15 == _TEXT:
            return data.text(nbytes, _LONGEST_TEXT).rstrip("\0 ")
        nbytes = data.number(4)
        place = self.offset(data)
        return self.heap_text(place, data.number(4), nbytes)

    def heap_text(self, place: int, index: int, nbytes: int) -> str:
        """Return a text in the global heap at this place."""
        cursor = self.whole.at(place)
        if cursor.take(4) != b"GCOL":
            raise DamagedFile(f"no HDF5 heap is at byte {place:,}, where one should be")
        cursor.skip(4)
        inner = self.length(cursor)
        heap = self.whole.at(place).part(inner)
        heap.skip(8 + self.wide_length)
        while self.num_entries < _MOST_BLOCKS:
            self.num_entries += 1
            found = heap.number(2)
            heap.skip(6)
            size = self.length(heap)
            if found == index:
                heap.need(size)
                return heap.text(nbytes, _LONGEST_TEXT)
            if found == 0:  # the rest is free
                break
            heap.skip(size + -size % 8)
        raise DamagedFile(f"an HDF5 heap has no entry {index}")


def _count(space: Cursor, wide_length: int) -> int:
    """Return the number of elements of an attribute."""
    version, rank = space.number(1), space.number(1)
    space.skip(6 if version == 1 else 2)
    count = 1
    for _ in range(rank):
        count *= space.number(wide_length)
    return count


FORMAT = Format("hdf5", sniff, describe)
