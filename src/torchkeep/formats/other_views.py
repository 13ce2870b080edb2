"""What other programs would take a file for.

The same bytes can be a file of two kinds: a tar header may be a pickle as well, a zip archive may
lie at the end of anything, and Python's unpickler starts with whatever byte comes first. Whoever
was told about the one kind is told about the other.

Source: torch/serialization.py (`_legacy_load` tries a tar first, and then unpickles),
Lib/zipfile.py (`_EndRecData`), PKWARE's APPNOTE 6.3, section 4.3.16.
"""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Contents, Finding, Global
from torchkeep.errors import FileProblem, LimitReached
from torchkeep.files import Readable
from torchkeep.formats import foreign
from torchkeep.formats.zip_structs import CENTRAL_MAGIC, END, END_MAGIC
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import Pickled, run_pickle
from torchkeep.pickles.source import ByteSource

_LONGEST_COMMENT = 0xFFFF
_MOST_STEPS = 1_000_000
_MOST_NBYTES = 1 << 26

_NOT_TAR = frozenset({"torch-zip", "torch-tar", "archive"})
"""Containers that are no tar for PyTorch whatever they start with, or that are one."""
_PICKLES = frozenset({"pickle", "torch-legacy"})
"""Containers that start with a pickle, which was run."""
_ZIP_START = b"PK\x03\x04"


def with_other_views(contents: Contents, file: Readable, head: bytes) -> Contents:
    """Return a description with what other programs would see in the file.

    Args:
        contents: what its reader saw.
        file: the file.
        head: its first bytes.

    Raises:
        FileProblem: the file can't be read.
    """
    findings = []
    names: dict[Global, None] = dict.fromkeys(contents.globals)
    if contents.container not in _NOT_TAR and foreign.is_tar_header(head):
        findings.append(_polyglot("the file is a tar archive too, and torch.load reads it as one"))
    if not head.startswith(_ZIP_START) and _ends_as_zip(file):
        findings.append(_polyglot("a zip archive stands at its end, and other programs read that"))
    pickled = None if contents.container in _PICKLES else _as_pickle(file)
    if pickled is not None:
        findings.append(_polyglot("the file runs as a pickle, too"))
        findings += pickled.findings
        names.update(dict.fromkeys(pickled.globals))
    if not findings:
        return contents
    return replace(contents, globals=tuple(names), findings=(*contents.findings, *findings))


def _polyglot(text: str) -> Finding:
    return Finding("polyglot", "ambiguous", "", text)


def _ends_as_zip(file: Readable) -> bool:
    """Whether the directory of a zip archive ends where the file ends."""
    nbytes = min(file.nbytes, END.size + _LONGEST_COMMENT)
    tail = file.read_at(file.nbytes - nbytes, nbytes)
    found = tail.rfind(END_MAGIC)
    while found >= 0:
        if len(tail) - found >= END.size:
            _, _, _, _, _, size, _, comment_nbytes = END.unpack_from(tail, found)
            start = file.nbytes - len(tail) + found - size
            if found + END.size + comment_nbytes == len(tail) and start >= 0:
                magic = file.read_at(start, min(4, size))
                return bool(magic == CENTRAL_MAGIC) if size else False
        found = tail.rfind(END_MAGIC, 0, found)
    return False


def _as_pickle(file: Readable) -> Pickled | None:
    """Return what unpickling the file would name, or None if it would name nothing.

    Most files end that after a few bytes. One that goes on for a million opcodes is no accident.
    """
    source = ByteSource(file.read_at, 0, file.nbytes)
    limits = Limits(steps=_MOST_STEPS, pickle_nbytes=_MOST_NBYTES)
    try:
        pickled = run_pickle(source, limits=limits)
    except LimitReached as problem:
        return problem.seen if source.position > _MOST_STEPS or problem.seen.globals else None
    except FileProblem as problem:
        pickled = problem.seen
    if pickled is None or not _are_names(pickled):
        return None
    return pickled


def _are_names(pickled: Pickled) -> bool:
    """Whether a run named anything that could be imported, or did it by other means."""
    return any(
        all(part.isidentifier() for part in (*name.module.split("."), *name.name.split(".")))
        for name in pickled.globals
    ) or any(finding.severity == "dangerous" for finding in pickled.findings)
