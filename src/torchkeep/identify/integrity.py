"""Whether a file's bytes are what was written, as far as the file itself can tell.

A zip archive has a CRC-32 per record, torchkeep's own files have a digest per tensor, and a legacy
stream or a safetensors file of others has neither: its bytes are read, and that is all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torchkeep.contents import Contents, Finding, Memory, Storage, TensorEntry, name_within
from torchkeep.elements import ElementReader
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.files import CHUNK_NBYTES, InputFile, Progress, Scratch, crc32_of, new_digest
from torchkeep.formats import describe, examine
from torchkeep.formats.folders.dcp_shards import piece_of
from torchkeep.formats.own.manifest import read_manifest
from torchkeep.formats.own.metadata import CHECKPOINT
from torchkeep.formats.zips.deflated import inflated
from torchkeep.identify.digests import stored_digests
from torchkeep.identify.json_form import finding_form
from torchkeep.identify.tree import Budget, NamedTensor, named_tensors
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted

State = Literal["ok", "incomplete", "damaged"]

_LEFT_OUT = frozenset({"not-looked-into", "not-walked", "link-to-folder", "packed", "unread-file"})
"""Rules of findings which say that something in a file or a folder was not looked into."""


@dataclass(frozen=True, slots=True)
class Integrity:
    """Whether the file's own statements about its sizes, ranges and checksums agree."""

    ok: bool
    """Whether nothing is damaged, and nothing was left out of the look."""
    findings: tuple[Finding, ...]
    """What is damaged."""
    left_out: tuple[Finding, ...] = ()
    """What was not looked into, or can't be read."""
    verified: bool = False
    """Whether the tensors' bytes were read as well."""
    num_checked: int = 0
    """Storages that were compared with a checksum or a digest."""
    num_unchecked: int = 0
    """Storages that were read, and have nothing to be compared with."""
    num_unread: int = 0
    """Storages that can't be read where they lie."""

    @property
    def state(self) -> State:
        """`damaged` if anything is, else `incomplete` if anything was left out, else `ok`."""
        if self.ok:
            return "ok"
        return "incomplete" if self.left_out and not self.findings else "damaged"

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md) as plain dicts and lists."""
        return {
            "ok": self.ok,
            "state": self.state,
            "verified": self.verified,
            "num_checked": self.num_checked,
            "num_unchecked": self.num_unchecked,
            "num_unread": self.num_unread,
            "findings": [finding_form(item) for item in self.findings],
            "left_out": [finding_form(item) for item in self.left_out],
        }


def integrity_of(contents: Contents) -> Integrity:
    """Return what is known without reading the tensors."""
    damaged = [item for item in contents.findings if item.severity == "damaged"]
    left_out = [
        item
        for item in contents.findings
        if item.rule in _LEFT_OUT and item.severity not in ("damaged", "note")
    ]
    for finding in _of_members(contents, ""):
        (damaged if finding.severity == "damaged" else left_out).append(finding)
    problem = contents.problem
    if problem is not None and not isinstance(problem, DamagedFile):
        left_out.append(Finding("unreadable", "ambiguous", "", problem.problem))
    is_broken = isinstance(problem, DamagedFile)
    return Integrity(
        ok=not (damaged or left_out or is_broken),
        findings=tuple(damaged),
        left_out=tuple(left_out),
    )


def _of_members(contents: Contents, start: str) -> Iterator[Finding]:
    """Yield which files within can't be read; which of its own are damaged, a folder says."""
    for member in contents.members:
        name = start + name_within(contents.path, member.path)
        problem = member.problem
        if isinstance(problem, DamagedFile) and contents.container == "archive":
            yield Finding("unreadable-file", "damaged", name, f"{name}: {problem.problem}")
        elif isinstance(problem, UnsupportedContent | LimitReached):
            yield Finding("unreadable-file", "ambiguous", name, f"{name}: {problem.problem}")
        yield from _of_members(member, f"{name}/")


def verify_file(
    path: str | os.PathLike[str], limits: Limits, progress: Progress | None = None
) -> Integrity:
    """Return what is known of a file or a folder after every byte of every tensor was read.

    What lies packed in an archive is unpacked into temporary files for that.

    Args:
        path: the file or the folder.
        limits: bounds of the work that it may cause.
        progress: is called from time to time.

    Raises:
        FileProblem: as `formats.describe` does.
    """
    with Scratch() as scratch:
        return verify_contents(describe(path, limits=limits, scratch=scratch), limits, progress)


def verify_inspected(
    contents: Contents, limits: Limits, progress: Progress | None = None
) -> Integrity:
    """Return what `verify_file` does of a file that was described already.

    Args:
        contents: its description; what can be read of a file with a problem is read.
        limits: bounds of the work.
        progress: is called from time to time.

    Raises:
        FileProblem: as `verify_file` does, but for the file's own problem.
    """
    if contents.problem is None and _has_archive(contents):  # what lies packed in it has to be had
        return verify_file(contents.path, limits, progress)
    return verify_contents(contents, limits, progress)


def _has_archive(contents: Contents) -> bool:
    return contents.container == "archive" or any(map(_has_archive, contents.members))


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
    digests, broken = _stored_digests(contents.path, wholes)
    checkpoints = dict.fromkeys(item for whole in wholes for item in _checkpoints(whole))
    files = _files_of_checkpoints(contents.path, checkpoints, limits)
    reading = _Reading(digests, tensors, files, progress)
    reading.run()
    before = _before_reading(contents.path, wholes)
    left_out = dict.fromkeys(before.left_out)
    if reading.num_unread:
        text = f"{counted(reading.num_unread, 'tensor')} can't be read where they lie"
        left_out[Finding("unread", "ambiguous", "", text)] = None
    return Integrity(
        ok=before.ok and not broken and not reading.findings and not reading.num_unread,
        findings=(*before.findings, *broken, *reading.findings),
        left_out=tuple(left_out),
        verified=True,
        num_checked=reading.num_checked,
        num_unchecked=reading.num_unchecked,
        num_unread=reading.num_unread,
    )


def _before_reading(path: Path, wholes: list[Contents]) -> Integrity:
    """Return what is known of several descriptions without reading, the first that of `path`."""
    all_ok = True
    findings: dict[Finding, None] = {}
    left_out: dict[Finding, None] = {}
    for whole in wholes:
        place = "" if whole is wholes[0] else name_within(path, whole.path)
        known = integrity_of(whole)
        all_ok = all_ok and known.ok
        for items, found in ((known.findings, findings), (known.left_out, left_out)):
            found.update(dict.fromkeys(item.within(place) if place else item for item in items))
    return Integrity(all_ok, tuple(findings), tuple(left_out))


def _stored_digests(
    path: Path, wholes: list[Contents]
) -> tuple[dict[Memory, frozenset[str]], list[Finding]]:
    """Return the digests of all tensors, and which files within have a broken table of them.

    Raises:
        DamagedFile: it is the file that was asked for.
    """
    digests: dict[Memory, frozenset[str]] = {}
    broken = []
    for whole in wholes:
        try:
            digests |= stored_digests(whole)
        except DamagedFile as problem:
            if problem.path is None or Path(problem.path) == path:
                raise
            place = name_within(path, Path(problem.path))
            broken.append(Finding("metadata", "damaged", place, problem.problem))
    return digests, broken


def _not_read_yet(contents: Contents, limits: Limits) -> Iterator[Contents]:
    """Yield the checkpoints of runs that were only told of: all but the newest whole one."""
    for member in contents.members:
        is_told_of = member.container == CHECKPOINT and not member.members
        if is_told_of and member.problem is None:
            yield examine(member.path, limits=limits)
        yield from _not_read_yet(member, limits)


def _checkpoints(contents: Contents) -> Iterator[Path]:
    """Yield the folders of our checkpoints within, but those that can't be read as one."""
    if contents.container == CHECKPOINT and contents.problem is None and contents.path.is_dir():
        yield contents.path
    for member in contents.members:
        yield from _checkpoints(member)


class _OwnFile(NamedTuple):
    """A file of a checkpoint of ours."""

    name: str
    """What it is called in the checkpoint."""
    checkpoint: str
    """What its checkpoint is called there; empty if that is what is verified."""
    digest: str
    """The digest of all in it that is no tensor."""


def _files_of_checkpoints(
    whole: Path, checkpoints: Iterable[Path], limits: Limits
) -> dict[Path, _OwnFile]:
    """Return what the manifests say about each file besides its tensors.

    The digests of the tensors leave out the header, in which a file says what is where.
    """
    found: dict[Path, _OwnFile] = {}
    for checkpoint in checkpoints:
        try:
            manifest = read_manifest(checkpoint, limits=limits)
        except FileProblem:  # which is among the findings
            continue
        place = "" if checkpoint == whole else name_within(whole, checkpoint)
        for name, facts in manifest["files"].items():
            found[checkpoint / name] = _OwnFile(name, place, facts["digest"])
    return found


class _Rest:
    """What is read of a file besides its tensors: its header, what fills a gap."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.running = new_digest()
        self.position = 0

    def skip(self, start: int, nbytes: int) -> None:
        """Leave out a tensor, which lies behind all that was left out before."""
        self.read_up_to(start)
        self.position = start + nbytes

    def read_up_to(self, end: int) -> None:
        while self.position < end:
            data = self.file.read_at(self.position, min(CHUNK_NBYTES, end - self.position))
            self.running.update(data)
            self.position += len(data)

    def digest(self) -> str:
        """Read all that is left, and return the digest."""
        self.read_up_to(self.file.nbytes)
        return self.running.hexdigest()


def _tensors_of(contents: Contents, limits: Limits) -> Iterator[tuple[str, TensorEntry]]:
    """Yield the tensors in a file's tree, and those in its members that are not in its tree."""
    budget = Budget.for_contents(contents, limits)
    for tensor in named_tensors(contents.root, budget, arrays=True):
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
        files: Mapping[Path, _OwnFile],
        progress: Progress | None,
    ) -> None:
        self.digests = digests
        self.files = files
        self.progress = progress
        self.findings: list[Finding] = []
        self.num_checked = 0
        self.done = 0
        self.spread = [it for it in tensors if it[1].chunks and it[1].memory in digests]
        self.users: dict[_Place, list[tuple[str, TensorEntry]]] = {}
        storages: dict[_Place, Storage] = {}
        for name, entry in self.with_pieces(tensors):
            place = _place(entry.storage)
            self.users.setdefault(place, []).append((name, entry))
            if place not in storages or storages[place].crc32 is None:
                storages[place] = entry.storage
        self.num_unread = sum(map(_is_out_of_reach, {e.memory: e for _, e in tensors}.values()))
        self.storages = sorted(
            (storage for storage in storages.values() if _is_on_disk(storage)),
            key=lambda storage: (str(storage.path), _start(storage)),
        )
        self.total = sum(storage.nbytes for storage in self.storages)
        self.total += sum(entry.nbytes for _, entry in self.spread)
        # The pickle that these stand in was read to its end, and has nothing to compare with.
        self.num_unchecked = sum(storage.data is not None for storage in storages.values())

    def with_pieces(
        self, tensors: list[tuple[str, TensorEntry]]
    ) -> Iterator[tuple[str, TensorEntry]]:
        """Yield the tensors, and the pieces of those that are spread over shards.

        Pieces of a tensor whose digest is known are read together.
        """
        for name, entry in tensors:
            if not entry.chunks:
                yield name, entry
            for chunk in () if entry.memory in self.digests else entry.chunks:
                called = f"{name} from {list(chunk.offsets)} on"
                try:
                    yield called, piece_of(chunk, entry.dtype)
                except FileProblem as problem:
                    text = f"{called}: {problem.problem}"
                    self.findings.append(Finding("unreadable", "damaged", name, text))

    def run(self) -> None:
        by_file = groupby(self.storages, key=lambda storage: storage.path)
        for path, storages in by_file:
            self.read(path, storages)
        for path in self.files.keys() - {storage.path for storage in self.storages}:
            self.read(path, ())
        for name, entry in self.spread:
            self.check_spread(name, entry)

    def check_spread(self, name: str, entry: TensorEntry) -> None:
        """Read a tensor that is spread over shards, and compare it with its digest.

        A shard of another checkpoint agrees with its own checksums, and not with this.
        """
        running = new_digest()
        try:
            with ElementReader(entry.chunks[0].path, checksums=True) as reader:
                for block in reader.blocks(entry, name):
                    running.update(block)
                    self.tell(len(block))
        except FileProblem as problem:
            self.findings.append(Finding("unreadable", "damaged", name, problem.problem))
            return
        self.num_checked += 1
        if running.hexdigest() not in self.digests[entry.memory]:
            text = f"the bytes of tensor {name!r} do not match the digest that was saved with them"
            self.findings.append(Finding("digest-mismatch", "damaged", name, text))

    def tell(self, nbytes: int) -> None:
        """Count bytes that were read."""
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)

    def read(self, path: Path | None, storages: Iterable[Storage]) -> None:
        """Read the storages of a file, and compare the rest of it if there is a digest."""
        file = self.open(path)
        if file is None:
            return
        own = None if path is None else self.files.get(path)
        num_found = len(self.findings)
        with file:
            rest = None if own is None else _Rest(file)
            for storage in storages:
                self.check(file, storage, rest)
            if own is not None and rest is not None and len(self.findings) == num_found:
                self.compare(own, rest)

    def compare(self, own: _OwnFile, rest: _Rest) -> None:
        place = own.checkpoint or own.name
        try:
            if rest.digest() != own.digest:
                text = f"{own.name} differs from what was written, outside of its tensors"
                self.findings.append(Finding("digest-mismatch", "damaged", place, text))
        except FileProblem as problem:
            text = f"{own.name}: {problem.problem}"
            self.findings.append(Finding("unreadable", "damaged", place, text))

    def open(self, path: Path | None) -> InputFile | None:
        if path is None:
            return None
        try:
            return InputFile(path)
        except FileProblem as problem:
            self.findings.append(Finding("unreadable", "damaged", str(path), problem.problem))
            return None

    def check(self, file: InputFile, storage: Storage, rest: _Rest | None) -> None:
        """Read a storage, and compare it with whatever there is."""
        users = self.users[_place(storage)]
        expected = self.whole_digests(storage, users)
        running, checksum = new_digest(), 0
        name = users[0][0]
        try:
            for start, chunk in self.chunks(file, storage):
                running.update(chunk)
                checksum = crc32_of(chunk, checksum) if storage.crc32 is not None else 0
                if rest is not None:
                    rest.skip(start, len(chunk))
        except FileProblem as problem:
            self.found("unreadable", storage, name, f"tensor {name!r}: {problem.problem}")
            return
        is_compared = storage.crc32 is None or storage.deflated is not None  # as it is unpacked
        if not is_compared and checksum != storage.crc32:
            text = f"the bytes of tensor {name!r} do not match the archive's checksum"
            self.found("crc-mismatch", storage, name, text)
        elif expected and running.hexdigest() not in expected:
            text = f"the bytes of tensor {name!r} do not match the digest that was saved with them"
            self.found("digest-mismatch", storage, name, text)
        if storage.crc32 is None and not expected:
            self.num_unchecked += 1
        else:
            self.num_checked += 1

    def found(self, rule: str, storage: Storage, name: str, text: str) -> None:
        """Note that a storage is damaged, with the checkpoint of a run that it lies in."""
        own = None if storage.path is None else self.files.get(storage.path)
        place = own.checkpoint if own is not None and own.checkpoint else name
        self.findings.append(Finding(rule, "damaged", place, text))

    def whole_digests(
        self, storage: Storage, users: list[tuple[str, TensorEntry]]
    ) -> frozenset[str]:
        """Return the digests that the storage's bytes may have: those of a tensor that is all."""
        for _, entry in users:
            is_all = entry.is_contiguous and entry.nbytes == storage.nbytes
            if is_all and not (entry.is_conj or entry.is_neg) and entry.memory in self.digests:
                return self.digests[entry.memory]
        return frozenset()

    def chunks(self, file: InputFile, storage: Storage) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of a storage, and where each piece of them begins."""
        begin = storage.offset or 0
        sizes = range(0, storage.nbytes, CHUNK_NBYTES)
        stored = (
            file.read_at(begin + position, min(CHUNK_NBYTES, storage.nbytes - position))
            for position in sizes
        )
        at = begin
        for chunk in stored if storage.deflated is None else inflated(file, storage):
            yield at, chunk
            at += len(chunk)
            self.tell(len(chunk))


_Place = tuple[Path | None, int, int]


def _place(storage: Storage) -> _Place:
    """Return where a storage lies: two that lie there are one, and read once."""
    if not _is_on_disk(storage):
        return None, id(storage), 0
    return storage.path, _start(storage), storage.nbytes


def _start(storage: Storage) -> int:
    return storage.deflated.offset if storage.deflated is not None else storage.offset or 0


def _is_on_disk(storage: Storage) -> bool:
    is_there = storage.offset is not None or storage.deflated is not None
    return is_there and storage.path is not None and storage.nbytes > 0


def _is_out_of_reach(entry: TensorEntry) -> bool:
    storage = entry.storage
    has_bytes = storage.nbytes > 0 and storage.device != "meta" and storage.data is None
    return has_bytes and not _is_on_disk(storage)
