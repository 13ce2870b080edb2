"""HDF5 files, Keras models first of all.

Layout: a superblock with the widths O of offsets and L of lengths, the end of the file and the
place of the root group's object header. An object header is a list of messages; those used here:

    0x01, 0x03, 0x08  of a data set: its shape, its type, where its elements are
    0x06  a link: the name of something in the group, and the place of its object header
    0x0C  an attribute: name, type, shape, value; a text of free length stands in a global heap
    0x10  a continuation: where the list goes on
    0x11  a symbol table: a B-tree whose leaves name what is in the group, the names in a heap
    0x02, 0x15  the links, the attributes are in structures for many of them

A Keras model has its layers as JSON in the root's attribute `model_config`.

Limits: groups are followed 32 deep, to 10,000 structures in all and 1,000 data sets, and the
attributes of the root alone are read. The structures for many links or attributes are not read; a
text search stands in for them. Files whose superblock does not come first are not recognised.

Source: "HDF5 File Format Specification Version 3.0", https://support.hdfgroup.org; keras's
src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torchkeep.contents import Contents, Finding, TensorEntry
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.cursor import ByteOrder, Cursor
from torchkeep.formats.described_only import not_loaded, tensor_at
from torchkeep.formats.ecosystems.keras import find_code, is_config, read_json, shown_model
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LINK_INFO, _LINK, _ATTRIBUTE, _CONTINUATION, _SYMBOLS, _ATTRIBUTE_INFO = 2, 6, 12, 16, 17, 21
_SPACE, _TYPE, _LAYOUT = 1, 3, 8
"""Messages of data sets."""
_TEXT, _FREE_LENGTH = 3, 9
"""Classes of types."""
_WIDTHS = (2, 4, 8)
_MOST_BLOCKS = 10_000
_MOST_NAMES = 100
_MOST_DATA_SETS = 1_000
_DEEPEST_GROUP = 32
_MOST_DIMENSIONS = 32
"""HDF5's own bound."""
_LONGEST_NAME = 1 << 10
_LONGEST_TEXT = 1 << 24
_LONGEST_FACT = 200
_SEARCHED_NBYTES = 1 << 24


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with HDF5's signature."""
    del nbytes
    return head.startswith(_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what is in the groups. Of data sets, name, shape, type and place are told."""
    group = _Group(file, limits)
    group.read()
    data_sets = _DataSets(group, file)
    data_sets.walk()
    texts = group.texts
    config = read_json(texts.get("model_config", ""))
    findings = find_code(config)
    if group.is_dense and not findings and _mentions_lambda(file):
        text = "the file mentions a Lambda layer, whose bytecode Keras would run"
        findings = [Finding("keras-lambda", "needs-trust", "", text)]
    facts = {key: text for key, text in texts.items() if len(text) <= _LONGEST_FACT}
    if group.names:
        facts["names"] = ", ".join(group.names)
    findings += data_sets.findings
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=data_sets.tensors or None,
        metadata=facts,
        findings=tuple(findings),
        kind=_kind(group, config) + data_sets.in_words(),
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
        self.links: list[tuple[str, int]] = []
        """What is in the group, with the places of the object headers."""
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
            elif message.type in (_LINK, _SYMBOLS):
                self.links += self.links_in(message)
            elif message.type in (_ATTRIBUTE_INFO, _LINK_INFO):
                self.is_dense |= self.has_heap(message)
        self.names = [name for name, _ in self.links[:_MOST_NAMES]]

    # --- Places --------------------------------------------------------------------------------

    def offset(self, cursor: Cursor) -> int:
        return cursor.number(self.wide_offset)

    def defined(self, offset: int) -> int:
        """Return an offset; -1 for the one that stands for none."""
        return -1 if offset == (1 << 8 * self.wide_offset) - 1 else offset

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

    def links_in(self, message: _Message) -> list[tuple[str, int]]:
        """Return what a message says is in its group; the place is -1 if it is in another file."""
        if message.type == _LINK:
            return [self.link(message.data)]
        tree, heap = self.offset(message.data), self.offset(message.data)
        return self.read_symbols(tree, self.heap_data(heap))

    def link(self, data: Cursor) -> tuple[str, int]:
        data.skip(1)
        flags = data.number(1)
        kind = data.number(1) if flags & 8 else 0
        data.skip((8 if flags & 4 else 0) + (1 if flags & 0x10 else 0))
        name = data.text(data.count(1 << (flags & 3), 1), _LONGEST_NAME)
        return name, -1 if kind else self.defined(self.offset(data))

    def heap_data(self, place: int) -> Cursor:
        """Return a cursor over the names in a local heap."""
        cursor = self.block(place, b"HEAP")
        cursor.skip(4)
        nbytes = self.length(cursor)
        cursor.skip(self.wide_length)
        return self.block(self.offset(cursor)).part(nbytes)

    def read_symbols(self, place: int, heap: Cursor) -> list[tuple[str, int]]:
        """Return the links in a B-tree of symbol tables."""
        waiting, found = [place], list[tuple[str, int]]()
        while waiting:
            cursor = self.block(waiting.pop(0))
            if (signature := cursor.take(4)) == b"SNOD":
                found += self.read_leaf(cursor, heap)
                continue
            if signature != b"TREE":
                raise DamagedFile(f"no HDF5 symbol table is at byte {cursor.position - 4:,}")
            cursor.skip(2)
            count = cursor.number(2)
            cursor.skip(2 * self.wide_offset)
            for _ in range(count):
                cursor.skip(self.wide_length)
                waiting.append(self.offset(cursor))
        return found

    def read_leaf(self, cursor: Cursor, heap: Cursor) -> Iterator[tuple[str, int]]:
        cursor.skip(2)
        for _ in range(cursor.number(2)):
            start, place = self.offset(cursor), self.offset(cursor)
            is_soft = cursor.number(4) == _SOFT_LINK
            cursor.skip(20)
            heap.need(start)
            left = heap.remaining - start
            data = heap.at(heap.position + start).take(min(left, _LONGEST_NAME))
            name = data.partition(b"\0")[0].decode("utf-8", "replace")
            yield name, -1 if is_soft else self.defined(place)

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


class _DataSets:
    """The data sets below a root group that was read."""

    def __init__(self, group: _Group, file: Readable) -> None:
        self.group = group
        self.file = file
        self.tensors: dict[str, TensorEntry] = {}
        self.findings: list[Finding] = []
        self.num_others = 0
        """Data sets of types that PyTorch lacks: texts, records."""
        self.is_cut = group.is_dense

    def in_words(self) -> str:
        """Return how many there are, for the end of a sentence; empty if there are none."""
        count = len(self.tensors) + self.num_others
        at_least = "at least " if self.is_cut and count else ""
        return f"; {at_least}{counted(count, 'data set')}" if count else ""

    def walk(self) -> None:
        """Go through the groups, the outer ones first, as far as the limits allow."""
        waiting = deque((name, place, 1) for name, place in self.group.links)
        while waiting:
            path, place, depth = waiting.popleft()
            if place < 0 or place in self.group.seen:  # elsewhere, or one object by two names
                continue
            count = len(self.tensors) + self.num_others
            is_full = len(self.group.seen) > _MOST_BLOCKS - _RESERVE or count >= _MOST_DATA_SETS
            if is_full or depth > _DEEPEST_GROUP:
                self.is_cut = True
                continue
            try:
                links = self.read(path, place)
            except (DamagedFile, LimitReached) as problem:
                text = f"it can't be looked into: {problem.problem}"
                is_damaged = isinstance(problem, DamagedFile)
                severity: Literal["damaged", "note"] = "damaged" if is_damaged else "note"
                self.findings.append(Finding("not-looked-into", severity, path, text))
                self.is_cut = True
                return
            waiting += ((f"{path}/{name}"[:_LONGEST_NAME], at, depth + 1) for name, at in links)

    def read(self, path: str, place: int) -> list[tuple[str, int]]:
        """Return what is in an object if it is a group; keep it if it is a data set."""
        links: list[tuple[str, int]] = []
        parts: dict[int, Cursor] = {}
        for message in self.group.messages(place):
            if message.type in (_LINK, _SYMBOLS):
                links += self.group.links_in(message)
            elif message.type == _LINK_INFO:
                self.is_cut |= self.group.has_heap(message)
            elif message.type in (_SPACE, _TYPE, _LAYOUT):
                parts.setdefault(message.type, message.data)
        if parts.keys() == {_SPACE, _TYPE, _LAYOUT}:
            self.keep(path, parts)
        return links

    def keep(self, path: str, parts: dict[int, Cursor]) -> None:
        """Keep a data set."""
        shape = _shape(parts[_SPACE], self.group.wide_length)
        kind = _dtype(parts[_TYPE])
        if kind is None or shape is None or path in self.tensors:
            self.num_others += 1
            return
        dtype, byteorder = kind
        offset = self.place(parts[_LAYOUT])
        self.tensors[path] = tensor_at(self.file, path, dtype, shape, offset, byteorder=byteorder)

    def place(self, layout: Cursor) -> int | None:
        """Return where the elements are in one run; None if they are not, or not there yet."""
        if layout.number(1) not in (3, 4) or layout.number(1) != _CONTIGUOUS:
            return None
        offset = self.group.defined(self.group.offset(layout))
        return None if offset < 0 else offset


_RESERVE = 100
"""Structures that a single object may still need when the walk ends."""
_CONTIGUOUS = 1
"""The class of a layout in one run."""
_SOFT_LINK = 2
"""How a symbol table says that an entry is the name of another one."""
_INTEGER, _REAL, _ENUMERATION = 0, 1, 8


def _shape(space: Cursor, wide_length: int) -> tuple[int, ...] | None:
    """Return the sizes of a data set; None if it has no elements at all."""
    version, rank, _ = space.number(1), space.number(1), space.number(1)
    if version not in (1, 2) or rank > _MOST_DIMENSIONS:
        raise DamagedFile(f"an HDF5 data set has a shape of version {version} and rank {rank}")
    kind = space.number(1)
    space.skip(4 if version == 1 else 0)
    is_null = version == 2 and kind == 2
    return None if is_null else tuple(space.number(wide_length) for _ in range(rank))


def _dtype(kind: Cursor) -> tuple[str, ByteOrder] | None:
    """Return PyTorch's name and the byte order of a type; None if PyTorch has no such type."""
    what, bits, nbytes = kind.number(1) & 15, kind.number(3), kind.number(4)
    order: ByteOrder = "big" if bits & 1 else "little"
    if what == _INTEGER and nbytes in (1, 2, 4, 8):
        return f"{'' if bits & 8 else 'u'}int{8 * nbytes}", order
    if what == _ENUMERATION and nbytes == 1:  # what h5py makes of NumPy's bool
        return "bool", order
    if what != _REAL or bits & 0x40 or nbytes not in (2, 4, 8):
        return None
    kind.skip(5)
    is_brain = nbytes == 2 and kind.number(1) == 8
    return "bfloat16" if is_brain else f"float{8 * nbytes}", order


def _count(space: Cursor, wide_length: int) -> int:
    """Return the number of elements of an attribute."""
    version, rank = space.number(1), space.number(1)
    space.skip(6 if version == 1 else 2)
    count = 1
    for _ in range(rank):
        count *= space.number(wide_length)
    return count


FORMAT = Format("hdf5", sniff, describe)
