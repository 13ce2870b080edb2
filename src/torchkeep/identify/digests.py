"""The digests that torchkeep's own files carry, by the tensors that they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torchkeep.contents import Contents, Memory, TensorEntry, numbers_of
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import DIGESTS, stored_table
from torchkeep.identify.tree import Budget, named_tensors
from torchkeep.pickles.limits import DEFAULT_LIMITS


def stored_digests(contents: Contents) -> dict[Memory, frozenset[str]]:
    """Return the digests of a file's tensors, and of those in its members; none in files of others.

    The file has them by path, and two tensors may have one path (`{"a": {"b": ...}, "a.b": ...}`);
    the writer marks the second's with `~`. Either digest is then taken for right.

    Raises:
        DamagedFile: the table of digests is broken.
        LimitReached: the file's values unfold too far.
    """
    digests = {memory: frozenset({text}) for memory, text in contents.digests.items()}
    for member in contents.members:
        for memory, known in stored_digests(member).items():
            digests.setdefault(memory, known)
    return _of_own_table(contents) | digests


def known_digest(entry: TensorEntry, digests: Mapping[Memory, frozenset[str]]) -> str | None:
    """Return the digest of a tensor's elements in C order, little-endian; None if it isn't known.

    Where a file has two for one path, neither is known. A digest is of the bytes as they are
    stored, so that of a big-endian file says nothing about these.

    Args:
        entry: the tensor.
        digests: those of its file, as `stored_digests` returns them.
    """
    known = digests.get(entry.memory, frozenset())
    is_known = len(known) == 1 and entry.storage.byteorder == "little"
    return next(iter(known)) if is_known else None


def differs_from_digest(name: str, path: Path) -> DamagedFile:
    """Return the error about a tensor whose elements have another digest than its file says."""
    return DamagedFile(
        f"tensor {name!r} differs from what was saved: its digest is another one",
        advice="Copy or download the file again, or take an older one.",
        path=path,
    )


def _of_own_table(contents: Contents) -> dict[Memory, frozenset[str]]:
    table = stored_table(contents, DIGESTS)
    if not table:
        return {}
    digests: dict[Memory, frozenset[str]] = {}
    for item in named_tensors(contents.root, Budget.for_contents(contents, DEFAULT_LIMITS)):
        for path, entry in _stored(item.path, item.entry):
            known = set(digests.get(entry.memory, ()))
            while path in table:
                known.add(table[path])
                path += "~"
            if known:
                digests[entry.memory] = frozenset(known)
    return digests


def _stored(path: str, entry: TensorEntry) -> Iterator[tuple[str, TensorEntry]]:
    """Yield a tensor, the plain numbers of a quantized one, and what a tensor is made of."""
    yield path, entry
    if entry.quantizer:
        yield path, numbers_of(entry)
    for name, part in entry.parts:
        yield f"{path}.{name}", part
