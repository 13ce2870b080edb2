"""One file per format: bytes in, `Contents` out. Nothing here imports torch.

    torch/        what torch.save writes and wrote: zip, stream, tar, and the pickles in them
    programs/     TorchScript, torch.export, torch.package, early C++ archives
    zips/         zip archives themselves, and which kind of archive one is
    archives/     zip, tar, 7z and packed files as holders of other files
    folders/      shards, distributed checkpoints, training outputs
    own/          what torchkeep itself writes: metadata, checkpoints, runs
    ecosystems/   GGUF, ONNX, HDF5, ...: named with what their headers say
    no_models/    pointers, texts, pictures
    other_views/  what another program would take the same bytes for
    plain_pickle.py, safetensors.py, numpy.py are formats by themselves

    format.py          what a format is to all of this
    containers.py      what each kind of file, archive and folder is good for
    machine_code.py    what a file of code is called, and starts with
    joining.py         several files described as one
    described_only.py, cursor.py, plain_json.py: what readers share

`READERS` is the list of what can be read, in the order in which a file is tried. To add a format:
write a module with a `FORMAT`, add it here, add a row to `containers`, a sample to the conformance
suite (tests/formats/samples.py) and a row to docs/formats.md. A kind of zip archive is added in
`zips.kinds`, a kind of folder in `folders.kinds`, in the same way.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile, FileMissing, FileProblem
from torchkeep.files import InputFile, Readable, Scratch
from torchkeep.formats.format import HEAD_NBYTES, Format, Lazily
from torchkeep.formats.other_views import with_other_views
from torchkeep.formats.torch.sparse_indices import check_sparse_indices
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

READERS = Lazily(
    "zips.kinds:FORMAT",
    "safetensors:FORMAT",
    "torch.legacy:FORMAT",
    "plain_pickle:FORMAT",
    "numpy:FORMAT",
    "ecosystems.gguf:FORMAT",
    "ecosystems.hdf5:FORMAT",
    "ecosystems.executorch:FORMAT",
    "ecosystems.onnx:FORMAT",
    "ecosystems.paddle:FORMAT",
    "ecosystems.lua_torch7:FORMAT",
    "no_models.git_lfs:FORMAT",
    "archives.archive:TORCH_TAR",
    "archives.archive:FORMAT",
    "no_models.text:FORMAT",
    "no_models.unknown:FORMAT",
)
"""Every format. The plain pickle comes after the legacy stream, which starts like one, and what
is taken for text or for nothing known comes last."""


def describe(
    path: str | os.PathLike[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
    scratch: Scratch | None = None,
) -> Contents:
    """Return what a file or a folder holds, without its tensors' bytes, executing nothing.

    Args:
        path: a file or a folder, as `examine` takes it.
        limits: bounds of the work that a file may cause.
        scratch: where models are kept that lie packed in an archive, so that their tensors can be
            read; without it they are only described.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it may not be read.
        NotAModelFile: it is something else: a web page, a Git LFS pointer, text, nothing.
        DamagedFile: it is truncated, or contradicts itself.
        LimitReached: reading it takes more than a limit allows.
        UnsupportedContent: it is of a kind that is recognised and not read.
    """
    contents = examine(path, limits=limits, scratch=scratch)
    if contents.problem is not None:
        raise contents.problem
    return contents


def describe_whole(
    path: str | os.PathLike[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
    scratch: Scratch | None = None,
) -> Contents:
    """Return what `describe` does, for who takes the tensors: all of them must be there.

    Args:
        path: a file or a folder, as `examine` takes it.
        limits: bounds of the work that a file may cause.
        scratch: as for `describe`.

    Raises:
        DamagedFile: a file that belongs to it is missing or damaged, or lacks tensors, or has one
            of which none can be made.
        FileProblem: as `describe` does.
    """
    contents = describe(path, limits=limits, scratch=scratch)
    absent = [
        item for item in contents.findings if item.rule in _ABSENT and item.severity != "note"
    ]
    if contents.container == "archive":
        absent += _damaged_members(contents)
    if absent:
        first, more = absent[0], len(absent) - 1
        text = f"{first.place}: {first.text}" if first.place else first.text
        raise DamagedFile(
            text + (f" (and {more:,} more)" if more else ""),
            advice="Copy or download what is missing, or give a file by itself.",
            path=contents.path,
        )
    return contents


def _damaged_members(contents: Contents) -> list[Finding]:
    """Return which files in an archive are damaged."""
    return [
        Finding("unreadable-file", "damaged", member.path.name, member.problem.problem)
        for member in contents.members
        if isinstance(member.problem, DamagedFile)
    ]


_ABSENT = frozenset(
    "missing-file missing-tensor malformed-call "
    "unreadable-file unreadable-folder unread-file".split()
)
"""Rules of findings which say that the tree is not all that it should be."""


def examine(
    path: str | os.PathLike[str],
    *,
    limits: Limits = DEFAULT_LIMITS,
    scratch: Scratch | None = None,
) -> Contents:
    """Return what a file or a folder holds, as `describe` does, whatever that is.

    What `describe` would raise because of the content stands in `Contents.problem`; what was seen
    before it (names in a pickle, oddities) is in the other fields.

    Args:
        path: a file or a folder. The index of a sharded model, and the metadata of a distributed
            checkpoint, stand for what they describe.
        limits: bounds of the work that a file may cause.
        scratch: as for `describe`.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it may not be read.
    """
    if not os.fspath(path):  # to pathlib it would be the current folder
        raise FileMissing("the path is empty", advice="Check what gave it.")
    # The kinds of folders use this module, and are needed for few paths.
    if _is_folder(path):
        from torchkeep.formats.folders.kinds import examine_folder

        return examine_folder(Path(path), limits, scratch=scratch)
    with InputFile(path, scratch=scratch) as file:
        head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
        if head[:1] == b"\x80" or b"{" in head[:8]:
            from torchkeep.formats.folders.kinds import stands_for

            contents = stands_for(file, head, limits)
            if contents is not None:
                return contents
        return examine_open(file, limits)


def _is_folder(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # why, will be told by whoever opens it
        return False


def examine_open(file: Readable, limits: Limits) -> Contents:
    """Return what something readable holds, as `examine` does."""
    head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
    reader = next(reader for reader in READERS if reader.sniff(head, file.nbytes))
    try:
        contents = reader.describe(file, limits)
        contents = _with_findings(contents, check_sparse_indices(contents, file))
    except FileProblem as problem:
        contents = _as_far_as_seen(file, reader, problem)
    contents = with_other_views(contents, file, head, limits)
    if contents.problem is not None:
        contents.problem.in_file(file.path)
    return replace(contents, stamp=file.stamp) if isinstance(file, InputFile) else contents


def _as_far_as_seen(file: Readable, reader: Format, problem: FileProblem) -> Contents:
    """Return what is known of a file that broke while it was read."""
    seen = problem.seen
    return Contents(
        path=Path(file.path),
        nbytes=file.nbytes,
        container=reader.name,
        root=None,
        pickle_protocol=seen.protocol if seen else None,
        globals=seen.globals if seen else (),
        findings=seen.findings if seen else (),
        problem=problem,
    )


def _with_findings(contents: Contents, findings: tuple[Finding, ...]) -> Contents:
    return replace(contents, findings=(*contents.findings, *findings)) if findings else contents


__all__ = ["READERS", "Format", "describe", "describe_whole", "examine", "examine_open"]
