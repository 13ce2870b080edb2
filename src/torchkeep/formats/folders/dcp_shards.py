"""One shard of a distributed checkpoint: whole archives of `torch.save`, end to end.

Layout: each object and each piece of a tensor is a zip archive of its own, with offsets that count
from its own start, and the next one begins where it ends. Which is which stands in the folder's
`.metadata`; without it the archives are numbered in the tree.

Limits: archives with a comment behind them are not told apart; PyTorch writes none.

Source: torch/distributed/checkpoint/filesystem.py (`_write_item`).
"""

from __future__ import annotations

from torchkeep.contents import (
    Chunk,
    Contents,
    Finding,
    Global,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
    nbytes_of,
)
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.files import FilePart, InputFile, Readable
from torchkeep.formats.zips.structs import (
    END,
    END64,
    END64_LOCATOR,
    END64_LOCATOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    LOCAL_MAGIC,
)
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

CONTAINER = "dcp"
_MOST_FINDINGS = 100
_MOST_ARCHIVES = 100_000
"""Archives in one shard; the largest models have some thousands."""


def archives_end_to_end(file: Readable) -> list[tuple[int, int]]:
    """Return start and length of each archive, if a file is several of them; else an empty list.

    The way is from the end to the start: an archive is found by the directory at its end.

    Raises:
        LimitReached: there are more archives than any shard has.
    """
    found: list[tuple[int, int]] = []
    end = file.nbytes
    while end:
        start = _start_of_archive(file, end)
        if start is None:
            return []
        found.append((start, end - start))
        if len(found) > _MOST_ARCHIVES:
            raise LimitReached(f"more than {_MOST_ARCHIVES:,} archives stand end to end")
        end = start
    return found[::-1] if len(found) > 1 else []


def _start_of_archive(file: Readable, end: int) -> int | None:
    """Return where the archive starts that ends at a byte; None if there is none."""
    tail_nbytes = min(end, END64.size + END64_LOCATOR.size + END.size)
    tail = file.read_at(end - tail_nbytes, tail_nbytes)
    if len(tail) < END.size or not tail[-END.size :].startswith(END_MAGIC):
        return None
    *_, nbytes, offset, comment_nbytes = END.unpack(tail[-END.size :])
    directory_end = end - END.size
    locator = tail[-END.size - END64_LOCATOR.size :]
    if locator.startswith(END64_LOCATOR_MAGIC) and tail.startswith(END64_MAGIC):
        *_, nbytes, offset = END64.unpack_from(tail)
        directory_end = end - tail_nbytes
    start = int(directory_end - nbytes - offset)
    if comment_nbytes or start < 0 or file.read_at(start, len(LOCAL_MAGIC)) != LOCAL_MAGIC:
        return None
    return start


def describe_shard(file: Readable, archives: list[tuple[int, int]], limits: Limits) -> Contents:
    """Return what the archives of a shard hold, numbered.

    Args:
        file: the shard.
        archives: where they are, as `archives_end_to_end` found them.
        limits: bounds of the work for each.
    """
    pieces = Pieces(limits)
    root = {str(n): pieces.open(str(n), file, *part) for n, part in enumerate(archives)}
    num_tensors = sum(isinstance(value, TensorEntry) for value in root.values())
    others = len(root) - num_tensors
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=CONTAINER,
        root=root,
        globals=tuple(pieces.globals),
        findings=tuple(pieces.findings_and_problems()),
        kind=(
            f"one shard of a distributed checkpoint: {num_tensors} tensors or pieces of them"
            + (f" and {others} other value{'s' if others > 1 else ''}" if others else "")
        ),
        problem=DamagedFile("none of its archives can be read")
        if len(pieces.unreadable) == len(root)
        else None,
    )


def piece_of(chunk: Chunk, dtype: str) -> TensorEntry:
    """Return a piece of a tensor: what a file of `torch.save` in a shard holds, or bare elements.

    Args:
        chunk: where the piece lies.
        dtype: the tensor's.

    Raises:
        FileProblem: it can't be read, or is no piece of such a tensor.
    """
    from torchkeep.formats import examine_open

    if chunk.nbytes == nbytes_of(dtype, chunk.shape):
        storage = Storage("", chunk.nbytes, chunk.start, path=chunk.path)
        return TensorEntry(dtype, chunk.shape, contiguous_stride(chunk.shape), storage)
    with InputFile(chunk.path) as shard:
        contents = examine_open(FilePart(shard, chunk.start, chunk.nbytes), DEFAULT_LIMITS)
    if contents.problem is not None:
        raise contents.problem
    piece = contents.root
    if not isinstance(piece, TensorEntry) or (piece.shape, piece.dtype) != (chunk.shape, dtype):
        raise DamagedFile("it is the piece of another tensor", path=chunk.path)
    return piece


class Pieces:
    """The archives in shards, opened one by one, and what all of them name and show."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.globals: dict[Global, None] = {}
        self.unreadable: dict[str, str] = {}
        self.findings: list[Finding] = []

    def open(self, name: str, file: Readable, start: int, nbytes: int) -> Value:
        """Return what an archive holds; None if it can't be read, which is told of under `name`."""
        # The formats use this module: it can meet them only when it is run.
        from torchkeep.formats import examine_open

        contents = examine_open(FilePart(file, start, nbytes), self.limits)
        self.globals.update(dict.fromkeys(contents.globals))
        for finding in contents.findings:
            if len(self.findings) < _MOST_FINDINGS and finding.severity != "note":
                place = f"{name}: {finding.place}" if finding.place else name
                text = Finding(finding.rule, finding.severity, place, finding.text)
                self.findings.append(text)
        if contents.problem is not None:
            self.unreadable[name] = contents.problem.problem
        return contents.root

    def findings_and_problems(self) -> list[Finding]:
        """Return what the archives showed, and which can't be read."""
        if not self.unreadable:
            return self.findings
        first = next(iter(self.unreadable.values()))
        num = len(self.unreadable)
        from torchkeep.formats.folders.folder import listed  # for damaged files only

        text = f"{num} archive{'s' if num > 1 else ''} can't be read, {listed(self.unreadable)}: "
        return [*self.findings, Finding("unreadable-piece", "damaged", "", text + first)]
