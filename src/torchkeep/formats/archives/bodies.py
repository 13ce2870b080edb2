"""The bytes of one file of an archive, stored as they are or packed, and where they lie.

What is read of a packed file is counted against the budget of the outermost file.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torchkeep.errors import DamagedFile, FileProblem, LimitReached
from torchkeep.files import FilePart, InputFile, MemoryFile, Readable, Scratch, Stream
from torchkeep.formats.archives.unpacking import CHUNK_NBYTES, Budget
from torchkeep.formats.format import HEAD_NBYTES
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.opcodes import OPCODES
from torchkeep.pickles.source import ByteSource


@dataclass(frozen=True, slots=True)
class Nesting:
    """Where a file lies: in how many archives, and what is left to spend on it."""

    level: int
    budget: Budget
    scratch: Scratch | None = None
    """Where a packed model is kept, if it is to be loaded."""


class StoredMember(FilePart):
    """A file that lies in an archive as it is."""

    def __init__(
        self, whole: Readable, start: int, nbytes: int, path: Path, nesting: Nesting
    ) -> None:
        super().__init__(whole, start, nbytes, path)
        self.nesting = nesting


class PackedMember(MemoryFile):
    """A file that was unpacked.

    What is read of it counts: it may be a thousand times larger than what it was unpacked from.
    """

    def __init__(self, data: bytes, path: Path, nesting: Nesting) -> None:
        super().__init__(data, path)
        self.nesting = nesting

    def keep(self) -> None:
        """Have the file on the disk as well, if it is to be loaded."""
        if self.nesting.scratch is not None:
            self.source = self.nesting.scratch.write(self._data)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes.

        Raises:
            DamagedFile: the file ends before that.
            LimitReached: the budget is used up.
        """
        self.nesting.budget.look(nbytes)
        return super().read_at(offset, nbytes)


def nesting_of(file: Readable, limits: Limits) -> Nesting:
    """Return where a file lies; one that lies in no archive begins with a budget of its own."""
    while isinstance(file, FilePart) and not isinstance(file, StoredMember):
        file = file.whole
    if isinstance(file, StoredMember | PackedMember):
        return file.nesting
    scratch = file.scratch if isinstance(file, InputFile) else None
    return Nesting(0, Budget(file.nbytes, limits), scratch)


class Body(Protocol):
    """The bytes of one file of an archive."""

    @property
    def nbytes(self) -> int | None:
        """Their number, if it is known before they are unpacked."""
        ...

    def head(self, nbytes: int = HEAD_NBYTES) -> bytes:
        """Return the first bytes."""
        ...

    def open(self, path: Path, nesting: Nesting) -> Readable:
        """Return all of them; `DamagedFile` or `LimitReached` if they can't be unpacked."""
        ...


class StoredBody:
    """Bytes that lie in the archive as they are."""

    def __init__(self, archive: Readable, offset: int, nbytes: int) -> None:
        self._archive = archive
        self._offset = offset
        self.nbytes = nbytes

    def head(self, nbytes: int = HEAD_NBYTES) -> bytes:
        """Return the first bytes."""
        return self._archive.read_at(self._offset, min(self.nbytes, nbytes))

    def open(self, path: Path, nesting: Nesting) -> Readable:
        """Return them as a window of the archive."""
        return StoredMember(self._archive, self._offset, self.nbytes, path, nesting)


class PackedBody:
    """Bytes that come out of a stream, taken off it once: first some of them, then the rest."""

    def __init__(self, stream: Stream, nbytes: int | None, crc32: int | None = None) -> None:
        self._stream = stream
        self._head = b""
        self._crc32 = crc32
        self._num_taken = 0
        self.nbytes = nbytes

    def head(self, nbytes: int = HEAD_NBYTES) -> bytes:
        """Return the first bytes."""
        self._head += self._take(max(0, nbytes - len(self._head)))
        return self._head[:nbytes]

    def open(self, path: Path, nesting: Nesting) -> Readable:
        """Return all of them, unpacked and compared with their checksum."""
        pieces = [self._head]
        while piece := self._take(CHUNK_NBYTES):
            pieces.append(piece)
        data = b"".join(pieces)
        if self.nbytes is not None and len(data) != self.nbytes:
            raise DamagedFile(f"it has {len(data)} bytes, not {self.nbytes}")
        if self._crc32 is not None and zlib.crc32(data) != self._crc32:
            raise DamagedFile(
                "it does not match its checksum", advice="Copy or download the file again."
            )
        return PackedMember(data, path, nesting)

    def step_over(self) -> None:
        """Take what is left of them off the stream."""
        while self._take(CHUNK_NBYTES):
            pass
        if self.nbytes is not None and self._num_taken < self.nbytes:
            raise DamagedFile("the archive's packed bytes end too early")

    def _take(self, most: int) -> bytes:
        if self.nbytes is not None:
            most = min(most, self.nbytes - self._num_taken)
        piece = self._stream.read(most) if most else b""
        self._num_taken += len(piece)
        return piece


class _MoreNeeded(Exception):
    """The first bytes of a file do not tell whether Python would run it as a pickle."""


def might_run(body: Body) -> bool:
    """Whether Python might run bytes as a pickle that do not look like one.

    The first bytes decide, since nearly everything has one among them that is no opcode.
    """
    first = body.head()
    if not first or first[0] not in OPCODES:
        return False
    start = body.head(_TRIED_NBYTES)
    nbytes = len(start) if body.nbytes is None else body.nbytes

    def read_at(offset: int, count: int) -> bytes:
        if offset + count > len(start):
            raise _MoreNeeded("more is needed")
        return start[offset : offset + count]

    try:
        run_pickle(ByteSource(read_at, 0, nbytes), limits=_TRIED)
    except (_MoreNeeded, LimitReached):
        return True
    except FileProblem as problem:
        return bool(problem.seen and (problem.seen.globals or problem.seen.findings))
    return True


_TRIED_NBYTES = 1 << 14
_TRIED = Limits(steps=10_000)
