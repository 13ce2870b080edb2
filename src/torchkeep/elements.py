"""A tensor's elements as bytes, straight from its file, without torch.

Whatever the file does with them (a strided view of a larger storage, packed, big-endian, in pieces
in several shards, conjugated by a flag), they come out in C order and little-endian, in blocks of
one size, so that a tensor of any size takes the memory of a block. Only a view that does not lie in
one run takes more: the part of the storage that it spans, be it a tensor or a piece of one.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torchkeep.contents import ITEM_SIZE, ROW_BITS, Box, Chunk, Storage, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.files import CHUNK_NBYTES, Buffer, InputFile, Stamp, changed, new_digest
from torchkeep.formats.folders.dcp_shards import piece_of
from torchkeep.formats.zips.deflated import check_ratio, inflate_into
from torchkeep.writing.boxes import Band, Part, bands
from torchkeep.writing.payload import Payload
from torchkeep.writing.strided import elements as strided_elements
from torchkeep.writing.strided import with_signs

_DAMAGED = "Copy or download the file again."


class ElementReader:
    """Reads the elements of entries; each file is opened when it is first needed.

    Args:
        path: what to name in an error about an entry that lies in no file of its own.
        checksums: compare each storage that is read as a whole with the checksum that its file has
            of it. (What lies packed always is.)
        stamps: what the files were when they were described (`Contents.stamps`). One that was
            changed or replaced since then is not read, and one that was changed meanwhile is told
            when the `with` block ends, before any problem that comes of it.
    """

    def __init__(
        self,
        path: Path,
        *,
        checksums: bool = False,
        stamps: Mapping[Path, Stamp] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self._stamps = stamps
        self._checksums = checksums
        self._files: dict[Path, InputFile] = {}
        self._unpacked: tuple[Storage, bytearray] | None = None
        self._lock = threading.RLock()

    def blocks(
        self, entry: TensorEntry, name: str = "", *, nbytes: int = CHUNK_NBYTES
    ) -> Iterator[Buffer]:
        """Yield the elements in C order, little-endian.

        Of a quantized tensor they are its integers; where elements share bytes, the bytes.

        Args:
            entry: the tensor, one that is not made of `parts`.
            name: what to call it in an error.
            nbytes: the size of each block but the last, a multiple of that of an element.

        Raises:
            DamagedFile: it reaches past its storage, or the storage past the file.
            UnsupportedContent: it has no bytes: it was saved from the `meta` device, is made of
                parts, or lies packed in an archive.
        """
        payload = self.payload(entry, name)
        try:
            yield from _in_blocks(payload.read(0, payload.nbytes), nbytes)
        except FileProblem as problem:
            raise problem.in_file(entry.storage.path or self.path) from None

    def payload(self, entry: TensorEntry, name: str = "") -> Payload:
        """Return the elements as what a writer takes; arguments and errors are those of `blocks`.

        The entry is checked now, and its bytes are read when they are asked for.
        """
        called = f"tensor {name!r}" if name else f"a tensor in storage {entry.storage.key!r}"
        try:
            if entry.numel:
                self._check(entry, called)
        except FileProblem as problem:
            raise problem.in_file(entry.storage.path or self.path) from None
        return Payload(entry.nbytes, lambda begin, end: self._elements(entry, called, begin, end))

    def stored(self, storage: Storage, part_nbytes: int = 1) -> Payload:
        """Return all bytes of a storage, little-endian.

        Args:
            storage: one that `payload` was asked about for an entry that looks into it.
            part_nbytes: the size of the numbers in it, whose bytes may have to change places.
        """

        def read(begin: int, end: int) -> Iterator[Buffer]:
            for part in self._range(storage, begin, end):
                yield _swapped(part, part_nbytes) if storage.byteorder == "big" else part

        return Payload(storage.nbytes, read)

    def _elements(
        self, entry: TensorEntry, called: str, begin: int, end: int
    ) -> Iterator[memoryview]:
        """Yield the bytes of the elements from one byte to another."""
        if entry.chunks:
            yield from self._joined(entry, called, begin, end)
            return
        size = ITEM_SIZE.get(entry.dtype, 1)
        position = begin // size * size if entry.is_contiguous else 0
        if entry.is_contiguous:
            pieces: Iterable[Buffer] = self._run(
                entry, position, min(-(-end // size) * size, entry.nbytes)
            )
        else:
            pieces = self._gathered(entry)
        for piece in pieces:
            if position >= end:
                return
            repaired = memoryview(_repaired(piece, entry))
            yield repaired[max(begin - position, 0) : max(end - position, 0)]
            position += len(piece)

    def _run(self, entry: TensorEntry, begin: int, end: int) -> Iterator[Buffer]:
        """Yield bytes of an entry whose elements lie in one run, as they are stored."""
        first = entry.storage_offset * ITEM_SIZE.get(entry.dtype, 1)
        return self._range(entry.storage, first + begin, first + end)

    def _gathered(self, entry: TensorEntry) -> Iterator[memoryview]:
        """Yield the elements of a strided view, as they are stored."""
        size = ITEM_SIZE[entry.dtype]
        first = entry.storage_offset * size
        spanned = memoryview(self._part(entry.storage, first, entry.nbytes_needed - first))
        return strided_elements(spanned, size, entry.shape, entry.stride)

    def _joined(
        self, entry: TensorEntry, called: str, begin: int, end: int
    ) -> Iterator[memoryview]:
        """Yield bytes of a tensor that is spread over the shards of a distributed checkpoint."""
        size = ITEM_SIZE[entry.dtype]
        pieces = [_Piece(self, chunk, entry.dtype, called) for chunk in entry.chunks]
        boxes = [Box(chunk.offsets, chunk.shape) for chunk in entry.chunks]
        for band in bands(entry.shape, boxes, CHUNK_NBYTES // size, first=begin // size):
            position = band.begin * size
            if position >= end:
                return
            for run in _put_together(band, pieces, size):
                yield memoryview(run)[max(begin - position, 0) : max(end - position, 0)]
                position += len(run)

    def _range(self, storage: Storage, begin: int, end: int) -> Iterator[Buffer]:
        """Yield a range of a storage in pieces, as it is stored."""
        is_whole = (begin, end) == (0, storage.nbytes) and storage.deflated is None
        is_compared, crc32 = self._checksums and is_whole and storage.crc32 is not None, 0
        for start in range(begin, end, CHUNK_NBYTES):
            part = self._part(storage, start, min(CHUNK_NBYTES, end - start))
            crc32 = zlib.crc32(part, crc32) if is_compared else 0
            yield part
        if is_compared and crc32 != storage.crc32:
            raise _differs_from_checksum(storage, storage.path or self.path)

    def follows(self, entry: TensorEntry, nbytes: int) -> bool:
        """Whether a checksum is to be computed by who reads a tensor in runs of so many bytes.

        Of a storage that is read as a whole it is compared here.
        """
        storage = entry.storage
        is_as_stored = storage.byteorder == "little" and not (entry.is_conj or entry.is_neg)
        is_whole = entry.is_whole and entry.nbytes == storage.nbytes and is_as_stored
        return self._checksums and storage.crc32 is not None and is_whole and nbytes < entry.nbytes

    def _part(self, storage: Storage, start: int, nbytes: int) -> Buffer:
        """Return bytes of a storage, as they are stored."""
        if storage.data is not None:
            return memoryview(storage.data)[start : start + nbytes]
        if storage.deflated is None:
            return self._file(storage).read_at((storage.offset or 0) + start, nbytes)
        return memoryview(self._inflated(storage))[start : start + nbytes]

    def _inflated(self, storage: Storage) -> bytearray:
        """Return a storage that lies packed, unpacked; the last one is kept for its next part."""
        with self._lock:
            if self._unpacked is None or self._unpacked[0] is not storage:
                self._unpacked = None
                unpacked = bytearray(storage.nbytes)
                inflate_into(memoryview(unpacked), self._file(storage), storage)
                self._unpacked = storage, unpacked
            return self._unpacked[1]

    def _check(self, entry: TensorEntry, called: str) -> None:
        """Raise, as `blocks` does, if the entry can't be read."""
        if entry.chunks:
            _check_chunks(entry, called)
            return
        if entry.is_composite:
            raise UnsupportedContent(f"{called} is made of parts, and has no bytes of its own")
        if entry.is_neg and not entry.dtype.startswith(("float", "bfloat", "complex")):
            raise UnsupportedContent(f"{called} of {entry.dtype} is negated by a flag")
        is_packed = entry.dtype not in ITEM_SIZE or entry.dtype in ROW_BITS
        if is_packed and not entry.is_whole:
            text = f"{called} is a view whose elements ({entry.dtype}) share bytes"
            raise UnsupportedContent(text, advice="Save it as a tensor of its own.")
        if reaches_past_its_storage(entry):
            raise past_its_storage(entry, called)
        storage = entry.storage
        if storage.device == "meta" and storage.data is None:
            text = f"{called} has no values: it was saved from the meta device"
            raise UnsupportedContent(text, advice="Save it from another device.")
        check_place(storage, called, lambda: self._file(storage).nbytes)

    def _file(self, storage: Storage) -> InputFile:
        path = storage.path or self.path
        with self._lock:  # writers read in several threads
            if path not in self._files:
                file = self._files[path] = InputFile(path)
                if self._stamps.get(path, file.stamp) != file.stamp:
                    raise changed(path)
            return self._files[path]

    def check_unchanged(self) -> None:
        """Raise if a file that was read is not what it was when it was opened.

        Raises:
            DamagedFile: one was changed; it is named.
        """
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        """Close the files."""
        self._unpacked = None
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> ElementReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None or issubclass(kind, FileProblem):
                self.check_unchanged()
        finally:
            self.close()


def _check_chunks(entry: TensorEntry, called: str) -> None:
    if entry.dtype not in ITEM_SIZE or entry.dtype in ROW_BITS:
        text = f"{called} is in pieces whose elements ({entry.dtype}) share bytes"
        raise UnsupportedContent(text, advice="Save it as one piece.")


def reaches_past_its_storage(entry: TensorEntry) -> bool:
    """Whether a view looks at bytes that its storage does not have."""
    numbers = (entry.storage_offset, *entry.stride, *entry.shape)
    return min(numbers) < 0 or entry.nbytes_needed > entry.storage.nbytes


def past_its_storage(entry: TensorEntry, called: str) -> DamagedFile:
    """Return the error about a view that looks at bytes that its storage does not have.

    A tensor of several shards that can't be put together has none at all.
    """
    storage = entry.storage
    if not storage.nbytes and storage.offset is None and storage.device != "meta":
        text = (
            "some of its pieces are missing, cut off, of another tensor, or contradict each other"
        )
        return DamagedFile(
            f"{called} can't be put together: {text}",
            advice="`torchkeep inspect` tells which; copy or download all of the files again.",
        )
    return DamagedFile(
        f"{called} (shape {entry.shape}, stride {entry.stride}, offset "
        f"{entry.storage_offset}) reaches past its storage of {entry.storage.nbytes} bytes",
        advice=_DAMAGED,
    )


def check_place(storage: Storage, called: str, file_nbytes: Callable[[], int]) -> None:
    """Raise unless the bytes of a storage are where they can be read.

    Args:
        storage: the storage.
        called: what to call its tensor in an error.
        file_nbytes: gives the size of the file that it lies in.

    Raises:
        DamagedFile: it has no bytes, reaches past the file, or is packed beyond belief.
        UnsupportedContent: it lies packed in an archive.
    """
    if storage.data is not None:
        return
    if storage.offset is None and storage.deflated is None:
        raise DamagedFile(f"{called} has no bytes in the file")
    if storage.path is None:
        text = f"{called} lies packed in an archive"
        raise UnsupportedContent(text, advice="Unpack the archive, and give what comes out.")
    start, held = storage.offset or 0, storage.nbytes
    if storage.deflated is not None:
        start, held = storage.deflated.offset, storage.deflated.nbytes
        check_ratio(storage, called)
    end, nbytes = start + held, file_nbytes()
    if end > nbytes:
        raise DamagedFile(
            f"{called} lies in bytes {start} to {end}, and the file ends at {nbytes}",
            advice=_DAMAGED,
        )


def _repaired(piece: Buffer, entry: TensorEntry) -> Buffer:
    """Return elements as they are stored little-endian, and with the signs that flags give them."""
    if entry.storage.byteorder == "big":
        piece = _swapped(piece, part_nbytes(entry.dtype))
    return with_signs(memoryview(piece), entry)


def part_nbytes(dtype: str) -> int:
    """Return the bytes of the numbers that elements of a dtype consist of."""
    size = ITEM_SIZE.get(dtype, 1)
    return size // 2 if "complex" in dtype else size


def _swapped(data: Buffer, size: int) -> Buffer:
    """Return numbers of this size with their bytes in the other order."""
    if size == 1:
        return data
    made = bytearray(len(data))
    for place in range(size):
        made[place::size] = data[size - 1 - place :: size]
    return made


def _differs_from_checksum(storage: Storage, path: Path) -> DamagedFile:
    return DamagedFile(
        f"the bytes of storage {storage.key!r} do not match the archive's checksum",
        advice=_DAMAGED,
        path=path,
    )


class _Piece:
    """A piece of a tensor, read from its start to its end, and compared with what is known of it.

    Args:
        reader: reads it.
        chunk: where it lies.
        dtype: its dtype.
        called: what to call its tensor in an error.
    """

    def __init__(self, reader: ElementReader, chunk: Chunk, dtype: str, called: str) -> None:
        self._reader = reader
        self._chunk = chunk
        self._dtype = dtype
        self._called = called
        self._entry: TensorEntry | None = None
        self._gathered: bytes | None = None
        self._position = self._crc32 = 0
        self._digest = new_digest() if chunk.digest else None

    def run(self, part: Part) -> Iterator[Buffer]:
        """Yield the bytes of what it has of a band.

        Raises:
            DamagedFile: it is the piece of another tensor, or is not what was written.
        """
        size = ITEM_SIZE[self._dtype]
        try:
            yield from self._bytes(part.begin * size, (part.begin + part.count) * size)
        except DamagedFile as problem:
            text = f"a piece of {self._called} can't be used: {problem.problem}"
            raise DamagedFile(text, advice=problem.advice, path=self._chunk.path) from None

    def _bytes(self, begin: int, end: int) -> Iterator[Buffer]:
        if self._entry is None:
            self._entry = piece_of(self._chunk, self._dtype)
            self._reader.payload(self._entry)  # it is checked
        if not self._entry.is_contiguous:
            if self._gathered is None:
                self._gathered = b"".join(self._reader.blocks(self._entry))
            yield self._gathered[begin:end]
            return
        is_followed = self._reader.follows(self._entry, end - begin)
        for run in self._reader.payload(self._entry).read(begin, end):
            if begin == self._position:
                self._follow(run, is_followed=is_followed)
            yield run
            begin += len(run)
        if self._position == self._entry.storage.nbytes:
            self._check(self._entry.storage, is_followed=is_followed)

    def _follow(self, run: Buffer, *, is_followed: bool) -> None:
        """Take what comes next into the checksum and the digest."""
        self._position += len(run)
        if is_followed:
            self._crc32 = zlib.crc32(run, self._crc32)
        if self._digest is not None:
            self._digest.update(run)

    def _check(self, storage: Storage, *, is_followed: bool) -> None:
        """Compare them at the end.

        Raises:
            DamagedFile: they differ.
        """
        if is_followed and self._crc32 != storage.crc32:
            raise _differs_from_checksum(storage, self._chunk.path)
        if self._digest is not None and self._digest.hexdigest() != self._chunk.digest:
            raise DamagedFile("it differs from what was written", advice=_DAMAGED)


def _put_together(band: Band, pieces: Sequence[_Piece], size: int) -> Iterator[Buffer]:
    """Yield the bytes of a band, from the pieces that have some of it."""
    if band.whole is not None:
        yield from pieces[band.whole.box].run(band.whole)
        return
    made = bytearray(band.count * size)
    for part in band.parts:
        run = b"".join(pieces[part.box].run(part))
        part.put(memoryview(run), memoryview(made), size)
    yield made


def _in_blocks(runs: Iterable[Buffer], nbytes: int) -> Iterator[Buffer]:
    """Yield the same bytes in blocks of one size, the last one excepted."""
    rest = bytearray()
    for run in runs:
        view = memoryview(run)
        if rest:
            missing = nbytes - len(rest)
            rest += view[:missing]
            view = view[missing:]
            if len(rest) < nbytes:
                continue
            yield rest
            rest = bytearray()
        while len(view) >= nbytes:
            yield view[:nbytes]
            view = view[nbytes:]
        rest += view
    if rest:
        yield rest
