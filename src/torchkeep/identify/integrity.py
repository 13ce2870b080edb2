"""Whether a file's bytes are what was written, as far as the file itself can tell.

A zip archive has a CRC-32 per record, torchkeep's own files have a digest per tensor, and a legacy
stream or a safetensors file of others has neither: its bytes are read, and that is all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchkeep.contents import Contents, Finding, Memory, Storage, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import CHUNK_NBYTES, InputFile, new_digest
from torchkeep.formats import examine
from torchkeep.formats.own import CHECKPOINT
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.json_form import finding_form
from torchkeep.identify.tree import Budget, NamedTensor, named_tensors
from torchkeep.pickles.limits import Limits

Progress = Callable[[int, int], None]
"""Is told how many bytes were read, and how many there are."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """Whether the file's own statements about its sizes, ranges and checksums agree."""

    ok: bool
    """Whether nothing is damaged, as far as it was looked at."""
    findings: tuple[Finding, ...]
    """What is damaged."""
    verified: bool = False
    """Whether the tensors' bytes were read as well."""
    num_checked: int = 0
    """Storages that were compared with a checksum or a digest."""
    num_unchecked: int = 0
    """Storages that were read, and have nothing to be compared with."""
    num_unread: int = 0
    """Storages that were not read: packed in an archive, or a tensor's pieces in several shards."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md) as plain dicts and lists."""
        return {
            "ok": self.ok,
            "verified": self.verified,
            "num_checked": self.num_checked,
            "num_unchecked": self.num_unchecked,
            "num_unread": self.num_unread,
            "findings": [finding_form(item) for item in self.findings],
        }


def integrity_of(contents: Contents) -> Integrity:
    """Return what is known without reading the tensors."""
    damaged = tuple(item for item in contents.findings if item.severity == "damaged")
    is_broken = isinstance(contents.problem, DamagedFile | LimitReached)
    return Integrity(ok=not damaged and not is_broken, findings=damaged)


def verify_contents(
    contents: Contents, limits: Limits, progress: Progress | None = None
) -> Integrity:
    """Return what is known after every byte of every tensor was read.

    Args:
        contents: the file's description.
        limits: bounds of the walk over its tree.
        progress: is called from time to time.

    Raises:
        LimitReached: the tree unfolds too far.
    """
    wholes = [contents, *_not_read_yet(contents, limits)]
    tensors = [part for whole in wholes for part in _tensors_of(whole, limits)]
    digests = {memory: known for whole in wholes for memory, known in stored_digests(whole).items()}
    reading = _Reading(digests, tensors, progress)
    reading.run()
    before = [integrity_of(whole) for whole in wholes]
    known = dict.fromkeys(finding for item in before for finding in item.findings)
    return Integrity(
        ok=all(item.ok for item in before) and not reading.findings,
        findings=(*known, *reading.findings),
        verified=True,
        num_checked=reading.num_checked,
        num_unchecked=reading.num_unchecked,
        num_unread=reading.num_unread,
    )


def _not_read_yet(contents: Contents, limits: Limits) -> Iterator[Contents]:
    """Yield the checkpoints of a run that were only told of: all but the newest whole one."""
    for member in contents.members:
        is_told_of = member.container == CHECKPOINT and not member.members
        if is_told_of and member.problem is None:
            yield examine(member.path, limits=limits)


def _tensors_of(contents: Contents, limits: Limits) -> Iterator[tuple[str, TensorEntry]]:
    """Yield the tensors in a file's tree, and those in its members that are not in its tree."""
    for tensor in named_tensors(contents.root, Budget.for_contents(contents, limits)):
        yield from _with_parts(tensor)
    for member in contents.members:
        yield from _tensors_of(member, limits)


def _with_parts(tensor: NamedTensor) -> Iterator[tuple[str, TensorEntry]]:
    yield tensor.path, tensor.entry
    for name, part in tensor.entry.parts:
        yield f"{tensor.path}.{name}", part


class _Reading:
    """One reading of all storages, in the order in which they lie in their files."""

    def __init__(
        self,
        digests: Mapping[Memory, frozenset[str]],
        tensors: list[tuple[str, TensorEntry]],
        progress: Progress | None,
    ) -> None:
        self.digests = digests
        self.progress = progress
        self.findings: list[Finding] = []
        self.num_checked = self.num_unchecked = 0
        self.done = 0
        self.users: dict[int, list[tuple[str, TensorEntry]]] = {}
        for name, entry in tensors:
            self.users.setdefault(id(entry.storage), []).append((name, entry))
        storages = {id(entry.storage): entry.storage for _, entry in tensors}
        self.num_unread = sum(map(_is_out_of_reach, {e.memory: e for _, e in tensors}.values()))
        self.storages = sorted(
            (storage for storage in storages.values() if _is_on_disk(storage)),
            key=lambda storage: (str(storage.path), storage.offset or 0),
        )
        self.total = sum(storage.nbytes for storage in self.storages)

    def run(self) -> None:
        path, file = None, None
        try:
            for storage in self.storages:
                if storage.path != path:
                    if file is not None:
                        file.close()
                    path, file = storage.path, None
                    file = self.open(storage.path)
                if file is not None:
                    self.check(file, storage)
        finally:
            if file is not None:
                file.close()

    def open(self, path: Path | None) -> InputFile | None:
        if path is None:
            return None
        try:
            return InputFile(path)
        except FileProblem as problem:
            self.findings.append(Finding("unreadable", "damaged", str(path), problem.problem))
            return None

    def check(self, file: InputFile, storage: Storage) -> None:
        """Read a storage, and compare it with whatever there is."""
        users = self.users[id(storage)]
        expected = self.whole_digests(storage, users)
        running, crc32 = new_digest(), 0
        try:
            for chunk in self.chunks(file, storage):
                running.update(chunk)
                crc32 = zlib.crc32(chunk, crc32) if storage.crc32 is not None else 0
        except FileProblem as problem:
            self.findings.append(Finding("unreadable", "damaged", users[0][0], problem.problem))
            return
        name = users[0][0]
        if storage.crc32 is not None and crc32 != storage.crc32:
            text = f"the bytes of tensor {name!r} do not match the archive's checksum"
            self.findings.append(Finding("crc-mismatch", "damaged", name, text))
        elif expected and running.hexdigest() not in expected:
            text = f"the bytes of tensor {name!r} do not match the digest that was saved with them"
            self.findings.append(Finding("digest-mismatch", "damaged", name, text))
        if storage.crc32 is None and not expected:
            self.num_unchecked += 1
        else:
            self.num_checked += 1

    def whole_digests(
        self, storage: Storage, users: list[tuple[str, TensorEntry]]
    ) -> frozenset[str]:
        """Return the digests that the storage's bytes may have: those of a tensor that is all."""
        for _, entry in users:
            is_all = entry.is_contiguous and entry.nbytes == storage.nbytes
            if is_all and not (entry.is_conj or entry.is_neg) and entry.memory in self.digests:
                return self.digests[entry.memory]
        return frozenset()

    def chunks(self, file: InputFile, storage: Storage) -> Iterator[bytes]:
        start = storage.offset or 0
        for position in range(0, storage.nbytes, CHUNK_NBYTES):
            nbytes = min(CHUNK_NBYTES, storage.nbytes - position)
            yield file.read_at(start + position, nbytes)
            self.done += nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)


def _is_on_disk(storage: Storage) -> bool:
    return storage.offset is not None and storage.path is not None and storage.nbytes > 0


def _is_out_of_reach(entry: TensorEntry) -> bool:
    if entry.chunks:
        return True
    storage = entry.storage
    has_bytes = storage.nbytes > 0 and storage.device != "meta" and storage.data is None
    return has_bytes and not _is_on_disk(storage)
