r"""NumPy's arrays: one (`.npy`), or a zip archive of them (`.npz`).

Layout of an array:

    6 bytes    \x93NUMPY
    2 bytes    the version: 1.0, 2.0 or 3.0
    2 bytes    the header's length, little endian; 4 bytes from version 2.0 on
    header     a dictionary as Python writes it, padded with spaces, ended by a newline:
               {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
    the rest   the elements in one run; if they are Python objects, a pickle

An archive holds one such file per array, stored or deflated, and nothing else.

Limits: arrays of texts, dates, records and other types that PyTorch lacks are named, not read.
Arrays that are deflated have no place in the file. What follows an array in its file is noted;
NumPy does not look at it.

Source: numpy/lib/_format_impl.py, numpy/lib/_npyio_impl.py.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torchkeep.contents import Contents, Deflated, Finding, Global, TensorEntry, Value
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import FilePart, MemoryFile, Readable
from torchkeep.formats.cursor import ByteOrder, Cursor
from torchkeep.formats.described_only import shown_shape, tensor_at
from torchkeep.formats.format import Format
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.formats.zips.directory import Directory, Record
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import DEFLATED, STORED
from torchkeep.pickles.arrays import DTYPES
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.source import ByteSource
from torchkeep.wording import counted, shortened

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
_LONGEST_HEADER = 1 << 16
"""Far above the 10,000 characters that NumPy itself reads unless it is told to trust a file."""
_DEEPEST_HEADER = 20
_INFLATED_NBYTES = (1 << 12, 12 + _LONGEST_HEADER)
"""What is unpacked of a deflated array to find its header: first this much, then that much."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as an array does."""
    del nbytes
    return head.startswith(_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the array is. Its elements are not read, unless they are a pickle."""
    header = _read_header(file, limits)
    array = _describe_array(file, file.nbytes, header, "", limits)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=array.root,
        metadata={"version": header.version, "dtype": header.shown_dtype},
        pickle_protocol=array.protocol,
        globals=array.globals,
        findings=tuple(array.findings),
        kind=f"NumPy array of {header}",
    )


def describe_archive(archive: Archive) -> Contents:
    """Return what the arrays in the archive are."""
    arrays = {
        name.removesuffix(_SUFFIX): _describe_record(archive, record)
        for name, record in archive.directory.records.items()
    }
    findings = [finding for array in arrays.values() for finding in array.findings]
    protocols = [array.protocol for array in arrays.values() if array.protocol is not None]
    return Contents(
        path=archive.file.path,
        nbytes=archive.file.nbytes,
        container=FORMAT.name,
        root={name: array.root for name, array in arrays.items()},
        pickle_protocol=max(protocols, default=None),
        globals=tuple(dict.fromkeys(name for a in arrays.values() for name in a.globals)),
        findings=(*archive.directory.findings, *findings),
        kind=f"NumPy archive of {counted(len(arrays), 'array')}",
    )


def is_archive_of_arrays(directory: Directory) -> bool:
    """Whether a zip archive holds arrays and nothing else."""
    return bool(directory.records) and all(name.endswith(_SUFFIX) for name in directory.records)


# --- Arrays --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    """What an array's header says."""

    version: str
    descr: Value
    """The element type as NumPy describes it: a code, or the fields of a record."""
    fortran: bool
    shape: tuple[int, ...]
    nbytes: int
    """The header's length: where the elements start."""

    @property
    def shown_dtype(self) -> str:
        if isinstance(self.descr, str):
            return shortened(self.descr)
        return f"a record of {counted(len(self.descr), 'field')}"

    @property
    def is_pickle(self) -> bool:
        """Whether the elements are Python objects, or have some."""
        return any("O" in code or "object" in code for code in _codes(self.descr))

    def __str__(self) -> str:
        kind = _torch_dtype(self.descr)
        dtype = kind[0] if kind else "objects (a pickle)" if self.is_pickle else self.shown_dtype
        return f"{dtype}, shape {shown_shape(self.shape)}"


@dataclass(frozen=True, slots=True)
class _Array:
    """What an array amounts to."""

    root: Value
    findings: list[Finding]
    globals: tuple[Global, ...] = ()
    protocol: int | None = None


def _describe_array(
    file: Readable, nbytes: int, header: _Header, name: str, limits: Limits, *, packed: bool = False
) -> _Array:
    """Return what an array of `nbytes` bytes is; `packed` says that its place is not as it is."""
    if header.is_pickle:
        return _describe_objects(file, header, name, limits)
    kind = _torch_dtype(header.descr)
    if kind is None:
        text = f"PyTorch has no element type {header.shown_dtype!r}: it is named, not read"
        return _Array(f"array of {header}", [Finding("dtype", "note", name, text)])
    dtype, byteorder = kind
    offset = None if packed else header.nbytes
    entry = tensor_at(
        file, name, dtype, header.shape, offset, byteorder=byteorder, fortran=header.fortran
    )
    left = nbytes - header.nbytes - entry.nbytes
    if left < 0:
        raise DamagedFile(f"array {shortened(name)!r} is truncated: {-left:,} bytes are missing")
    return _Array(entry, _behind(left, name))


def _describe_objects(file: Readable, header: _Header, name: str, limits: Limits) -> _Array:
    """Return what the pickle holds that an array of objects is written as."""
    source = ByteSource(file.read_at, header.nbytes, file.nbytes)
    pickled = run_torch_pickle(source, limits=limits, file=file)
    findings = [*pickled.findings, *_behind(source.remaining, name)]
    return _Array(pickled.root, findings, pickled.globals, pickled.protocol)


def _behind(nbytes: int, name: str) -> list[Finding]:
    text = f"{nbytes:,} bytes follow the array"
    return [Finding("trailing-bytes", "ambiguous", name, text)] if nbytes else []


def _describe_record(archive: Archive, record: Record) -> _Array:
    """Return what the array in a record of an archive is."""
    name, whole, limits = record.name.removesuffix(_SUFFIX), archive.file, archive.limits
    if record.method == STORED:
        file = FilePart(whole, record.offset, record.nbytes)
        return _describe_array(file, file.nbytes, _read_header(file, limits), name, limits)
    header = _read_packed_header(whole, record, limits)
    if header.is_pickle:
        unpacked = MemoryFile(archive.read(record.name), whole.path)
        return _describe_objects(unpacked, header, name, limits)
    array = _describe_array(whole, record.nbytes, header, name, limits, packed=True)
    if not isinstance(array.root, TensorEntry):
        return array
    place = Deflated(whole.start + record.offset, record.packed_nbytes, header.nbytes)
    crc32 = record.crc32 or None
    storage = replace(array.root.storage, deflated=place, path=whole.source, crc32=crc32)
    return replace(array, root=replace(array.root, storage=storage))


def _read_packed_header(file: Readable, record: Record, limits: Limits) -> _Header:
    """Return the header of a deflated array, unpacking no more than it takes."""
    if record.method != DEFLATED:
        raise UnsupportedContent(
            f"array {shortened(record.name)!r} is packed by method {record.method}"
        )
    packed = file.read_at(record.offset, min(record.packed_nbytes, _INFLATED_NBYTES[-1]))
    for most in _INFLATED_NBYTES:
        try:
            start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, most)
        except zlib.error as error:
            text = f"array {shortened(record.name)!r} can't be unpacked ({error})"
            raise DamagedFile(text) from None
        try:
            return _read_header(MemoryFile(start, file.path), limits)
        except DamagedFile:
            if len(start) < most or most == _INFLATED_NBYTES[-1]:
                raise
    raise AssertionError


# --- Headers -------------------------------------------------------------------------------------


def _read_header(file: Readable, limits: Limits) -> _Header:
    cursor = Cursor.over(file, limits)
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise DamagedFile("an array does not start as NumPy's do")
    major, minor = cursor.take(2)
    if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
        raise UnsupportedContent(f"the array is of version {major}.{minor} of NumPy's format")
    nbytes = cursor.number(2 if major == 1 else 4)
    if nbytes > _LONGEST_HEADER:
        raise DamagedFile(f"the array's header has {nbytes:,} bytes, far more than any needs")
    text = cursor.take(nbytes).decode("latin1" if major < 3 else "utf-8", "replace")
    fields = _parse(text)
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise DamagedFile("the array's header is not made of descr, fortran_order and shape")
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple):
        raise DamagedFile("the array's header has a broken order or shape")
    if not all(type(size) is int for size in shape):
        raise DamagedFile("the array's header has a shape that is not made of numbers")
    list(_codes(descr))
    return _Header(f"{major}.{minor}", descr, fortran, shape, cursor.position)


def _codes(descr: Value) -> Iterator[str]:
    """Yield the codes in a description of an element type: one, or those of a record's fields."""
    if isinstance(descr, str):
        yield descr
    elif isinstance(descr, tuple) and len(descr) == 2:  # an array in each element
        yield from _codes(descr[0])
    elif isinstance(descr, list):
        for field in descr:
            if not isinstance(field, tuple) or len(field) not in (2, 3):
                raise DamagedFile("the array's header has a broken element type")
            yield from _codes(field[1])
    else:
        raise DamagedFile("the array's header has a broken element type")


def _torch_dtype(descr: Value) -> tuple[str, ByteOrder] | None:
    """Return PyTorch's name of an element type and its byte order; None if it has no such type."""
    if not isinstance(descr, str):
        return None
    dtype = DTYPES.get(descr.lstrip("<>|=")) if len(descr) < 8 else None
    return None if dtype is None else (dtype, "big" if descr.startswith(">") else "little")


_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^'\\\n]*'|"[^"\\\n]*")|(?P<number>-?[0-9]{1,19})L?"""
    r"""|(?P<word>True|False|None)|(?P<mark>[][(){},:]))"""
)
"""No escapes: nothing that NumPy writes needs them, and they would hide a code."""
_WORDS = {"True": True, "False": False, "None": None}


def _parse(text: str) -> Value:
    """Return the value of a literal of texts, numbers, dictionaries, lists and tuples.

    Python's own `ast.literal_eval` can be made to run out of stack.
    """
    tokens = _tokens(text.strip())
    value = _parse_value(tokens, next(tokens), 0)
    if next(tokens) != ("", ""):
        raise DamagedFile(_NO_LITERAL)
    return value


_NO_LITERAL = "the array's header is not what Python would write"


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each token, and then empty ones for ever."""
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise DamagedFile(_NO_LITERAL)
        yield found.lastgroup, found[found.lastgroup]
        position = found.end()
    while True:
        yield "", ""


def _parse_value(tokens: Iterator[tuple[str, str]], token: tuple[str, str], depth: int) -> Value:
    kind, text = token
    if kind == "text":
        return text[1:-1]
    if kind == "number":
        return int(text)
    if kind == "word":
        return _WORDS[text]
    if text not in _CLOSING or depth > _DEEPEST_HEADER:
        raise DamagedFile(_NO_LITERAL)
    items, has_comma = _parse_items(tokens, _CLOSING[text], depth)
    if text == "{":
        return dict(items)
    if text == "[":
        return items
    return items[0] if len(items) == 1 and not has_comma else tuple(items)


_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _parse_items(
    tokens: Iterator[tuple[str, str]], closing: str, depth: int
) -> tuple[list[Value], bool]:
    """Return what stands up to the closing mark, pairs if that is a brace; and if a comma does."""
    items: list[Value] = []
    has_comma = False
    token = next(tokens)
    while token != ("mark", closing):
        item = _parse_value(tokens, token, depth + 1)
        if closing == "}":
            if next(tokens) != ("mark", ":") or not isinstance(item, str):
                raise DamagedFile(_NO_LITERAL)
            item = (item, _parse_value(tokens, next(tokens), depth + 1))
        items.append(item)
        token = next(tokens)
        has_comma = token == ("mark", ",")
        if has_comma:
            token = next(tokens)
        elif token != ("mark", closing):
            raise DamagedFile(_NO_LITERAL)
    return items, has_comma


FORMAT = Format("numpy", sniff, describe)
