"""What a file holds, as plain data: no tensor bytes, no torch.

A reader in `formats/` turns bytes into `Contents`: a tree of inert values whose leaves are
`TensorEntry`. The tree is made of

* Python's own None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset;
* `TensorEntry`, a tensor that lies in the file;
* `Array`, a NumPy array that lies in a pickle;
* `Global`, a name that the file mentions; it is never imported;
* `Object`, something that the file would have Python make; nothing is made;
* `DictObject`, a mapping with a class of its own, such as OrderedDict;
* `Files`, the trees of the files in an archive or a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torchkeep.errors import FileProblem
    from torchkeep.files import Stamp

Value = Any
"""An inert value, as listed above. (A recursive type would say no more to the checker.)"""

ITEM_SIZE: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "quint8": 1,
    "qint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
    "bcomplex32": 4,
    "bits8": 1,
    "bits16": 2,
    "bits1x8": 1,
    "bits2x4": 1,
    "bits4x2": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}
"""Bytes per element of each dtype, under PyTorch's name for it (`torch.float32` is `float32`).

Of a dtype in `ROW_BITS` it is the unit in which PyTorch counts a storage.
"""

ROW_BITS: dict[str, int] = {"quint4x2": 4, "quint2x4": 2}
"""Bits per element of the dtypes whose elements share bytes, each row starting with a new one."""

FOREIGN_BITS: dict[str, int] = {"f4": 4, "f6_e2m3": 6, "f6_e3m2": 6}
"""Bits per element of the dtypes that PyTorch lacks, under the file's name for them in lower case;
elements stand side by side. A pair of `f4` is one `float4_e2m1fn_x2`."""


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a contiguous tensor.

    >>> nbytes_of("float32", (3, 5)), nbytes_of("quint4x2", (3, 5)), nbytes_of("f6_e2m3", (4, 3))
    (60, 9, 9)
    """
    if dtype in ITEM_SIZE and dtype not in ROW_BITS:
        return prod(shape) * ITEM_SIZE[dtype]
    if dtype in ROW_BITS and shape:
        return prod(shape[:-1]) * -(-shape[-1] * ROW_BITS[dtype] // 8)
    return -(-prod(shape) * (ROW_BITS | FOREIGN_BITS)[dtype] // 8)


@dataclass(frozen=True, slots=True)
class Deflated:
    """Where a storage lies deflated in its file (RFC 1951)."""

    offset: int
    """Where the packed bytes start."""
    nbytes: int
    """How many there are."""
    skipped: int = 0
    """Unpacked bytes before the storage's first one."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of raw bytes in a file that one or more tensors look into."""

    key: str
    """The container's name for it: a record's name, or a tensor's."""
    nbytes: int
    """Its length in bytes."""
    offset: int | None
    """Where it starts, in bytes from the start of the file `path`; None if its bytes can't be read
    there: they are missing, or packed."""
    device: str = "cpu"
    """The device it was saved from, as written: `cpu`, `cuda:0`."""
    byteorder: Literal["little", "big"] = "little"
    """The byte order of its elements."""
    crc32: int | None = None
    """The checksum that the container records for it, or None."""
    path: Path | None = None
    """The file on disk that it lies in; None where it lies in no file as it is."""
    data: bytes | None = None
    """Its bytes, where they stand inside a pickle; `offset` is None then."""
    deflated: Deflated | None = None
    """Where they are in `path`, if they are packed there; `offset` is None then."""


class Box(NamedTuple):
    """A part of a tensor that has the same rows, columns, ... throughout."""

    offsets: tuple[int, ...]
    """Where it begins, one number per dimension."""
    shape: tuple[int, ...]
    """Its sizes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor that is spread over the shards of a distributed checkpoint."""

    offsets: tuple[int, ...]
    """Where the box starts, one number per dimension."""
    shape: tuple[int, ...]
    """Its sizes."""
    path: Path
    """The shard that it lies in."""
    start: int
    """Where in the shard it starts: a whole file of `torch.save`, or the bare elements."""
    nbytes: int
    """The length of that file; that of the elements if they are bare."""
    digest: str = ""
    """The digest of the elements, if the checkpoint says it."""


Memory = tuple[int, int, str, tuple[int, ...], tuple[int, ...], bool, bool]
"""See `TensorEntry.memory`."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of the file: a strided view of a storage."""

    dtype: str
    """PyTorch's name of the element type, a key of `ITEM_SIZE`; else one of `FOREIGN_BITS`."""
    shape: tuple[int, ...]
    """Its sizes; empty for a scalar."""
    stride: tuple[int, ...]
    """Elements between neighbours, one per dimension."""
    storage: Storage
    """The bytes it looks into; tensors with the same storage object share memory."""
    storage_offset: int = 0
    """Elements before its first one in the storage."""
    requires_grad: bool = False
    """The flag as saved. State dicts are saved detached, so it is False there."""
    is_parameter: bool = False
    """Whether it was saved as an `nn.Parameter`."""
    is_conj: bool = False
    """Whether its elements are the complex conjugates of what the bytes say."""
    is_neg: bool = False
    """Whether its elements are the negatives of what the bytes say."""
    layout: str = "strided"
    """How it is laid out, in PyTorch's words: `strided`, `sparse_coo`, `sparse_csr`, `jagged`."""
    quantizer: tuple[Value, ...] = ()
    """Of a quantized tensor: the scheme, then scale and zero point, or lists of them and the axis;
    lists that are tensors stand in `parts`."""
    class_path: str = ""
    """The class of a tensor that has one of its own, such as `torch.distributed.tensor.DTensor`."""
    parts: tuple[tuple[str, TensorEntry], ...] = ()
    """The tensors that it is made of, where it has no storage of its own: indices and values."""
    chunks: tuple[Chunk, ...] = ()
    """The pieces that it is put together from, where it is spread over shards."""
    is_coalesced: bool | None = None
    """Of a `sparse_coo` tensor: whether its indices are said to be sorted and each there once."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_composite(self) -> bool:
        """Whether it has no storage of its own, but is made of `parts` or of `chunks`."""
        return bool(self.chunks) or (bool(self.parts) and not self.storage.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements as stored; a storage that it shares may hold more."""
        if self.is_composite and not self.chunks:
            return sum(part.nbytes for _, part in self.parts)
        return nbytes_of(self.dtype, self.shape)

    @property
    def nbytes_needed(self) -> int:
        """Bytes that its storage must have at least; 0 if it is empty, or has none."""
        if self.numel == 0 or self.is_composite:
            return 0
        if self.dtype not in ITEM_SIZE or (self.dtype in ROW_BITS and self.is_whole):
            return self.nbytes
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.storage_offset + last + 1) * ITEM_SIZE[self.dtype]

    @property
    def memory(self) -> Memory:
        """A key that is equal for tensors of one file that are the same elements in one memory."""
        place = (id(self.storage), self.storage_offset, self.dtype)
        return (*place, self.shape, self.stride, self.is_conj, self.is_neg)

    @property
    def is_whole(self) -> bool:
        """Whether its elements are those of its storage, from the first one on and in C order."""
        return self.storage_offset == 0 and self.is_contiguous

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in one run in C order."""
        if self.numel == 0:
            return True
        if self.is_composite:
            return False
        expected = contiguous_stride(self.shape)
        return self.stride == expected or all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, self.stride, expected, strict=True)
        )


def contiguous_stride(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor of this shape whose elements lie in one run.

    Its last index runs fastest, or with `fortran` its first.

    >>> contiguous_stride((2, 3, 4)), contiguous_stride((2, 3, 4), fortran=True)
    ((12, 4, 1), (1, 2, 6))
    """
    if fortran:
        return contiguous_stride(shape[::-1])[::-1]
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


_PLAIN_DTYPES: dict[str, str] = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
"""The dtype of a quantized tensor's numbers, by the quantized one, if they are whole bytes."""


def numbers_of(entry: TensorEntry) -> TensorEntry:
    """Return the plain tensor whose numbers a quantized one has, bytes where they share these."""
    if entry.dtype in ROW_BITS:
        shape = (entry.nbytes,)
        return TensorEntry("uint8", shape, contiguous_stride(shape), entry.storage)
    return replace(entry, dtype=_PLAIN_DTYPES[entry.dtype], quantizer=(), parts=())


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the file mentions. It is data here, and never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A NumPy array of numbers that lies in a pickle, bytes and all."""

    dtype: str
    """PyTorch's name of the element type."""
    shape: tuple[int, ...]
    """Its sizes."""
    fortran: bool
    """Whether its first index runs fastest."""
    storage: Storage
    """Its elements: inside the pickle, or behind it in the file."""

    @property
    def entry(self) -> TensorEntry:
        """The tensor of its elements."""
        stride = contiguous_stride(self.shape, fortran=self.fortran)
        return TensorEntry(self.dtype, self.shape, stride, self.storage)


@dataclass(slots=True, eq=False)
class Object:
    """Something that the file would have Python make, kept as the recipe.

    It is mutable because pickles fill an object after they made it; readers treat it as fixed.
    """

    callee: Value
    """What would be called: a `Global`, as a rule."""
    args: tuple[Value, ...]
    """The arguments."""
    kwargs: dict[str, Value] = field(default_factory=dict)
    """The keyword arguments (protocol 4's NEWOBJ_EX)."""
    state: Value = None
    """What `__setstate__` would get, or the attributes."""
    items: list[Value] = field(default_factory=list)
    """What would be appended to it."""
    pairs: dict[Value, Value] = field(default_factory=dict)
    """What would be set in it by key."""

    @property
    def class_path(self) -> str:
        """The dotted name of what would be called."""
        return str(self.callee) if isinstance(self.callee, Global) else "<computed>"

    @property
    def attributes(self) -> dict[Value, Value]:
        """Its attributes by name; `(dict, slots)` states are joined."""
        return attributes_of(self.state)


def name_within(whole: Path, part: Path) -> str:
    """Return what a file in an archive or a folder is called in it.

    >>> name_within(Path("runs"), Path("runs/a/model.pth")), name_within(Path("."), Path("b.pth"))
    ('a/model.pth', 'b.pth')
    """
    return (part.relative_to(whole) if part.is_relative_to(whole) else part).as_posix()


def attributes_of(state: Value) -> dict[Value, Value]:
    """Return the attributes in what an object's state is set to: a dict, or one and slots."""
    parts = state if isinstance(state, tuple) else (state,)
    return {key: item for part in parts if isinstance(part, dict) for key, item in part.items()}


def child_path(path: str, name: object) -> str:
    """Return the path of what stands under a name within a path; that of the root is empty.

    >>> child_path("layers.0", "weight"), child_path("", 3)
    ('layers.0.weight', '3')
    """
    return f"{path}.{name}" if path else str(name)


def repr_key(key: Value) -> str:
    """Return a dictionary key that is no text as one component of a path."""
    if isinstance(key, tuple | frozenset):
        return f"<{type(key).__name__} of {len(key)}>"
    return str(key) if not isinstance(key, Object) else f"<{key.class_path}>"


class DictObject(dict[Value, Value]):
    """A mapping of the file with a class of its own, such as `collections.OrderedDict`.

    Attributes:
        class_path: the dotted name of its class.
        attributes: what was set on it besides its items; a state dict has `_metadata` there.
    """

    __slots__ = ("attributes", "class_path")

    def __init__(self, class_path: str) -> None:
        super().__init__()
        self.class_path = class_path
        self.attributes: dict[Value, Value] = {}


class Files(dict[Value, Value]):
    """The trees of several files by the files' names: the root of an archive or a folder.

    It is told from other mappings since it is none of a file's own: whatever is in the files, and
    whatever they are called, it is no state dict and no optimizer.
    """

    __slots__ = ()


Severity = Literal["note", "needs-trust", "ambiguous", "dangerous", "damaged"]
"""How bad something is; the worst makes the verdict."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the file that its reader should know."""

    rule: str
    """A short fixed name: `imports`, `crc-mismatch`, `view-out-of-bounds`, ..."""
    severity: Severity
    """How bad it is."""
    place: str
    """Where: a record, a key, an offset; empty for the file as a whole."""
    text: str
    """One sentence for a person."""

    def within(self, place: str) -> Finding:
        """Return it as a finding of what `place` lies in: a member of an archive, of a folder."""
        return replace(self, place=f"{place}: {self.place}" if self.place else place)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds."""

    path: Path
    """The file, as it was asked for."""
    nbytes: int
    """Its size on disk."""
    container: str
    """The kind of file: `torch-zip`, `torch-legacy`, `safetensors`, ..."""
    root: Value
    """The tree of values."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the container says about itself: safetensors' `__metadata__`, a zip's version."""
    pickle_protocol: int | None = None
    """The protocol of the pickle inside; None where there is none."""
    globals: tuple[Global, ...] = ()
    """Every name that the file mentions, in the order of first mention."""
    sources: dict[str, str] = field(default_factory=dict)
    """Source text of classes that the file carries, by dotted name. It is text, never run."""
    findings: tuple[Finding, ...] = ()
    """What its reader should know."""
    digests: dict[Memory, str] = field(default_factory=dict)
    """The tensors' digests as a checkpoint's manifest has them, by `TensorEntry.memory`. Those that
    a file has of its own tensors are in its `metadata`."""
    kind: str = ""
    """What the file is in a few words, where that says more than the tree does."""
    members: tuple[Contents, ...] = ()
    """The files in an archive or a folder, each described in turn."""
    problem: FileProblem | None = None
    """Why no model can be read from it; None if one can."""
    stamp: Stamp | None = field(default=None, compare=False)
    """What the file was when it was described; None for what is no file on the disk."""

    @property
    def stamps(self) -> dict[Path, Stamp]:
        """The stamps of the file and of its members, by path."""
        stamps = {} if self.stamp is None else {self.path: self.stamp}
        for member in self.members:
            stamps |= member.stamps
        return stamps

    @property
    def tensors(self) -> dict[str, TensorEntry]:
        """The tensors right below its root by name; empty if its root is no table of names."""
        table = self.root if isinstance(self.root, dict) else {}
        return {
            name: item
            for name, item in table.items()
            if isinstance(name, str) and isinstance(item, TensorEntry)
        }
