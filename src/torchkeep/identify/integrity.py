"""Whether a file's bytes are what was written, as far as the file itself can tell.

A zip archive has a CRC-32 per record, torchkeep's own files have a digest per tensor, and a legacy
stream or a safetensors file of others has neither: its bytes are read, and that is all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchkeep.contents import Contents, Finding, Storage, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import CHUNK_NBYTES, InputFile, new_digest
from torchkeep.identify.digests import stored_digests
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
    tensors = [
        part
        for tensor in named_tensors(contents.root, Budget.for_contents(contents, limits))
        for part in _with_parts(tensor)
    ]
    reading = _Reading(contents, tensors, progress)
    reading.run()
    before = integrity_of(contents)
    return Integrity(
        ok=before.ok and not reading.findings,
        findings=(*before.findings, *reading.findings),
        verified=True,
        num_checked=reading.num_checked,
        num_unchecked=reading.num_unchecked,
    )


def _with_parts(tensor: NamedTensor) -> Iterator[tuple[str, TensorEntry]]:
    yield tensor.path, tensor.entry
    for name, part in tensor.entry.parts:
        yield f"{tensor.path}.{name}", part


class _Reading:
    """One reading of all storages, in the order in which they lie in their files."""

    def __init__(
        self,
        contents: Contents,
        tensors: list[tuple[str, TensorEntry]],
        progress: Progress | None,
    ) -> None:
        self.digests = stored_digests(contents)
        self.progress = progress
        self.findings: list[Finding] = []
        self.num_checked = self.num_unchecked = 0
        self.done = 0
        self.users: dict[int, list[tuple[str, TensorEntry]]] = {}
        for name, entry in tensors:
            self.users.setdefault(id(entry.storage), []).append((name, entry))
        storages = {id(entry.storage): entry.storage for _, entry in tensors}
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
