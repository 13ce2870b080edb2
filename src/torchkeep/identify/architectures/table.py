"""The names and shapes of the tensors of every model of torchvision and timm, read from one file.

`table.bin` lies beside this module and is written by `scripts/build_architectures.py`. All numbers
are little endian:

    header    8 bytes "tkarch" and the version of the layout as u16; u32 CRC-32 of all that
              follows; eight u32 counts in the order of `_Counts`
    starts    u32 per inner node, and one more: where its edges begin
    edges     u32 each: the number of a key component << 20, and of the child below it
    roots     u32 per signature: its node
    weights   u32 per signature: the sum of its tensors' weights (`weight_of`)
    sampled   u32 per signature: how many samples are its
    samples   u32, sorted: hashes of (key, shape)
    owners    u16 per sample: the signature that it was drawn from
    text      ASCII lines: the versions of the libraries; the key components; the shapes; per
              signature its models, separated by tabs

A signature is a tree as modules are: a node's edges are its components ("layer1", "weight") in the
order of the state dict, a child below the number of shapes is a shape, any other a node. Equal
subtrees are stored once, within a model and among all of them, and equal signatures are one with
several names. A shape reads "64,i,7,7" or "4c,256": numbers, `i` the input channels, `c` the
classes, and `4c+1` four times the classes and one more. BatchNorm's counters
(`num_batches_tracked`) are left out.

Samples are the signature's `SAMPLE_SIZE` smallest hashes of the tensors whose shape is fixed (a
bottom-k sketch: Cohen & Kaplan, "Summarizing data using bottom-k sketches", 2007): the share of
them that a file has estimates the share of all.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from torchkeep.errors import DamagedFile

PATH = Path(__file__).with_name("table.bin")
"""The file that is shipped."""
SAMPLE_SIZE = 64
"""Hashes that are kept of each signature, at most."""
CHILD_BITS = 20
"""Bits of an edge that number the child; the others number the component."""

_MAGIC = b"tkarch"
_VERSION = 1
_HEADER = struct.Struct("<6sHI8I")
_CHECKED_FROM = 12
"""Where the part begins that the checksum covers."""
_CHILD = (1 << CHILD_BITS) - 1


class _Counts(NamedTuple):
    versions: int
    components: int
    shapes: int
    nodes: int
    edges: int
    signatures: int
    samples: int
    text_nbytes: int


class Table:
    """The signatures of a table file; each is known by its number."""

    def __init__(self, data: bytes, path: Path = PATH) -> None:
        """Read the bytes of a table; `path` is where they are from, for messages.

        Raises:
            DamagedFile: they are no table, one of another layout, or were changed.
        """
        counts = _counts(data, path)
        numbers = _Numbers(data, _HEADER.size)
        self._starts = numbers.take("I", counts.nodes + 1)
        self._edges = numbers.take("I", counts.edges)
        self._roots = numbers.take("I", counts.signatures)
        self.weights = numbers.take("I", counts.signatures)
        self.sampled = numbers.take("I", counts.signatures)
        self._samples = numbers.take("I", counts.samples)
        self._owners = numbers.take("H", counts.samples)
        lines = data[len(data) - counts.text_nbytes :].decode("ascii").split("\n")
        first_component = counts.versions
        first_shape = first_component + counts.components
        first_names = first_shape + counts.shapes
        self.versions = tuple(lines[:first_component])
        self._components = lines[first_component:first_shape]
        self._shapes = lines[first_shape:first_names]
        self._names = lines[first_names:]

    def __len__(self) -> int:
        return len(self._roots)

    def names(self, signature: int) -> list[str]:
        """Return the models that have a signature: "torchvision/resnet18", "timm/resnet18"."""
        return self._names[signature].split("\t")

    def shapes(self, signature: int) -> dict[str, str]:
        """Return the shapes of a signature's tensors by key, in the order of the state dict."""
        found: dict[str, str] = {}
        self._expand(self._roots[signature], "", found)
        return found

    def _expand(self, node: int, prefix: str, found: dict[str, str]) -> None:
        shapes = self._shapes
        for edge in self._edges[self._starts[node] : self._starts[node + 1]]:
            key = prefix + self._components[edge >> CHILD_BITS]
            child = edge & _CHILD
            if child < len(shapes):
                found[key] = shapes[child]
            else:
                self._expand(child - len(shapes), f"{key}.", found)

    def hits(self, hashes: Iterable[int]) -> Counter[int]:
        """Return how many of each signature's samples are among some hashes; without zeros."""
        samples, owners = self._samples, self._owners
        end = len(samples)
        found: Counter[int] = Counter()
        for wanted in hashes:
            at = bisect_left(samples, wanted)
            while at < end and samples[at] == wanted:
                found[owners[at]] += 1
                at += 1
        return found


def hash_of(key: str, shape: str) -> int:
    """Return the 32 bits by which a key with its shape is sampled and looked up."""
    return crc32(f"{key} {shape}".encode("utf-8", "surrogatepass"))


def weight_of(num_dims: int) -> int:
    """Return how much a tensor counts: once per dimension, and once if it has none."""
    return num_dims or 1


class Rule(NamedTuple):
    """A size that depends on a number: so many times the number, and a constant."""

    factor: int
    letter: str
    constant: int


@cache
def rule_of(size: str) -> Rule:
    """Return the rule of a size.

    >>> rule_of("i"), rule_of("4c+1")
    (Rule(factor=1, letter='i', constant=0), Rule(factor=4, letter='c', constant=1))
    """
    factor, letter, constant = re.split("([ci])", size)
    return Rule(int(factor or 1), letter, int(constant or 0))


def fill(shape: str, num_classes: int | None, input_channels: int | None) -> str:
    """Return a shape with numbers for its letters, and "?" for a number that is not known.

    >>> fill("4c,256", num_classes=10, input_channels=None)
    '40,256'
    """
    if "c" not in shape and "i" not in shape:
        return shape
    numbers = {"c": num_classes, "i": input_channels}
    sizes = []
    for size in shape.split(","):
        if size.isdigit():
            sizes.append(size)
            continue
        factor, letter, constant = rule_of(size)
        number = numbers[letter]
        sizes.append("?" if number is None else str(factor * number + constant))
    return ",".join(sizes)


@cache
def shipped_table() -> Table:
    """Return the table that is shipped, read on the first call.

    Raises:
        DamagedFile: it is missing or broken, and torchkeep must be installed again.
    """
    try:
        data = PATH.read_bytes()
    except OSError as error:
        raise _broken(f"it can't be read ({error.strerror})", PATH) from None
    return Table(data)


def file_of(*counts: int, body: bytes) -> bytes:
    """Return a table file: its header, with counts in the order of `_Counts`, and its body."""
    checked = struct.pack("<8I", *counts) + body
    return struct.pack("<6sHI", _MAGIC, _VERSION, crc32(checked)) + checked


def _counts(data: bytes, path: Path) -> _Counts:
    if len(data) < _HEADER.size:
        raise _broken(f"it has {len(data)} bytes", path)
    magic, version, checksum, *numbers = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise _broken(f"it starts with {magic!r}, not {_MAGIC!r}", path)
    if version != _VERSION:
        raise _broken(f"its layout is version {version}, not {_VERSION}", path)
    if crc32(memoryview(data)[_CHECKED_FROM:]) != checksum:
        raise _broken("its checksum does not agree", path)
    return _Counts(*numbers)


def _broken(what: str, path: Path) -> DamagedFile:
    return DamagedFile(
        f"torchkeep's own table of architectures is broken: {what}",
        advice="Install torchkeep again.",
        path=path,
    )


class _Numbers:
    """Arrays that stand one behind another."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = memoryview(data)
        self.at = at

    def take(self, code: str, count: int) -> array[int]:
        found = array(code)
        nbytes = count * found.itemsize
        found.frombytes(self.data[self.at : self.at + nbytes])
        self.at += nbytes
        if sys.byteorder == "big":
            found.byteswap()
        return found
