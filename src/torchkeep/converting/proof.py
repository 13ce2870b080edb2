"""Whether a written file holds what the source does: read back, and compared by digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torchkeep.comparing.leaves import leaves
from torchkeep.contents import Contents, TensorEntry, Value
from torchkeep.elements import ElementReader
from torchkeep.errors import ProofFailed
from torchkeep.files import Progress, digest_of_pieces
from torchkeep.identify.digests import differs_from_digest
from torchkeep.identify.tree import Budget
from torchkeep.matching.tied import tied_names
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.writing.dcp_flat import flatten
from torchkeep.writing.payload import Payload


class Expected(NamedTuple):
    """What a tensor of the written file has to be."""

    dtype: str
    """Its dtype."""
    shape: tuple[int, ...]
    """Its sizes."""
    elements: Payload
    """Its elements, read from the source once more."""
    digest: str | None
    """The digest of them that the source carries; None if it has none."""


def leaves_of(contents: Contents) -> dict[str, Value]:
    """Return what stands in a file of ours by path, tied names included."""
    budget = Budget.for_contents(contents, DEFAULT_LIMITS)
    if contents.container == "dcp":
        return leaves(flatten(contents.root).values, budget)
    if contents.container != "torch-zip":
        tied = tied_names(contents)
        return {**contents.tensors, **{name: contents.tensors[kept] for name, kept in tied.items()}}
    return leaves(contents.root, budget)


def prove(
    found: Mapping[str, Value],
    expected: Mapping[str, Expected | Value],
    source: Path,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """Raise unless a written file has exactly the values and the tensors that it should have.

    Args:
        found: what it holds by path.
        expected: what it should hold by path.
        source: the file that was converted.
        path: the file that was written.
        progress: is told the bytes that were compared, and how many there are.

    Raises:
        DamagedFile: a tensor of the source differs from the digest that the source has of it.
        ProofFailed: the written file differs from the source.
    """
    for name in (*expected, *found):
        if name not in found or name not in expected or not _is_alike(found[name], expected[name]):
            raise _failed(path, name)
    tensors = _distinct(found, expected)
    done, total = 0, sum(item.nbytes for _, item, _ in tensors)
    with ElementReader(path) as reader:
        for name, entry, wanted in tensors:
            digest = digest_of_pieces(reader.blocks(entry, name))
            _compare(name, digest, wanted, source, path)
            done += entry.nbytes
            if progress is not None:
                progress(done, total)


def _distinct(
    found: Mapping[str, Value], expected: Mapping[str, Expected | Value]
) -> list[tuple[str, TensorEntry, Expected]]:
    """Return each pair of tensors once, whatever names it has."""
    pairs: dict[tuple[object, int], tuple[str, TensorEntry, Expected]] = {}
    for name, wanted in expected.items():
        entry = found[name]
        if isinstance(wanted, Expected) and isinstance(entry, TensorEntry):
            pairs.setdefault((entry.memory, id(wanted.elements)), (name, entry, wanted))
    return list(pairs.values())


def _is_alike(found: Value, expected: Expected | Value) -> bool:
    """Whether a value is what it should be; of a tensor, its dtype and shape."""
    if isinstance(expected, Expected):
        return isinstance(found, TensorEntry) and (
            (found.dtype, found.shape) == (expected.dtype, expected.shape)
        )
    if isinstance(found, float | complex):
        return type(found) is type(expected) and repr(found) == repr(expected)
    return type(found) is type(expected) and bool(found == expected)


def _compare(name: str, digest: str, wanted: Expected, source: Path, path: Path) -> None:
    if wanted.digest is not None and digest != wanted.digest:
        raise differs_from_digest(name, source)
    elements = wanted.elements
    if wanted.digest is None and digest != digest_of_pieces(elements.read(0, elements.nbytes)):
        raise _failed(path, name)


def _failed(path: Path, name: str) -> ProofFailed:
    return ProofFailed(
        f"{path}: {name!r} differs from the source after writing",
        advice="If it happens again, check the disk; else this is a bug in torchkeep.",
    )
