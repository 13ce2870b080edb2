"""What other programs would take a file for.

The same bytes can be a file of two kinds: a tar header may be a pickle as well, a zip archive may
lie at the end of anything, and Python's unpickler starts with whatever byte comes first. Whoever
was told about the one kind is told about the other.

Source: torch/serialization.py (`_legacy_load` tries a tar first, and then unpickles),
Lib/zipfile.py (`_EndRecData`), PKWARE's APPNOTE 6.3, section 4.3.16.
"""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Contents, Finding
from torchkeep.files import Readable
from torchkeep.formats import foreign
from torchkeep.formats.hidden_pickle import find_hidden_pickle
from torchkeep.formats.zip_structs import (
    CENTRAL_MAGIC,
    END,
    END64_LOCATOR,
    END64_LOCATOR_MAGIC,
    END_MAGIC,
    LOCAL_MAGIC,
)
from torchkeep.pickles.limits import Limits

_LONGEST_COMMENT = 0xFFFF

_NOT_TAR = frozenset({"torch-zip", "torch-tar", "archive"})
"""Containers that are no tar for PyTorch whatever they start with, or that are one."""
_RUN_BY_THEIR_READERS = frozenset({"pickle", "torch-legacy", "text", "unknown"})
"""Containers whose readers tell what a pickle at the file's start would do."""
_SETTINGS_NBYTES = 1 << 20
_TARGET = b"_target_"


def with_other_views(contents: Contents, file: Readable, head: bytes, limits: Limits) -> Contents:
    """Return a description with what other programs would see in the file.

    Args:
        contents: what its reader saw.
        file: the file.
        head: its first bytes.
        limits: bounds of the work.

    Raises:
        DamagedFile, FileUnreadable: the file can't be read.
    """
    findings = []
    if contents.container not in _NOT_TAR and foreign.is_tar_header(head):
        findings.append(_polyglot("the file is a tar archive too, and torch.load reads it as one"))
    is_zip = head.startswith(LOCAL_MAGIC)
    if not is_zip and _ends_as_zip(file):
        findings.append(_polyglot("a zip archive stands at its end, and other programs read that"))
    names = dict.fromkeys(contents.globals)
    if not is_zip and contents.container not in _RUN_BY_THEIR_READERS:
        found, hidden = find_hidden_pickle(file, limits)
        names.update(dict.fromkeys(found))
        findings += hidden
    if contents.container == "text":
        contents = _with_settings(contents, file)
    if not findings:
        return contents
    return replace(contents, globals=tuple(names), findings=(*contents.findings, *findings))


def _polyglot(text: str) -> Finding:
    return Finding("polyglot", "ambiguous", "", text)


def _with_settings(contents: Contents, file: Readable) -> Contents:
    """Return the description of a text with the text itself, if it names what is to be called.

    Hydra and its kin call what stands under `_target_` in YAML or JSON; NeMo's archives bring it.
    """
    if file.nbytes > _SETTINGS_NBYTES:
        return contents
    data = file.read_at(0, file.nbytes)
    if _TARGET not in data:
        return contents
    return replace(contents, metadata={**contents.metadata, "text": data.decode("utf-8", "ignore")})


def _ends_as_zip(file: Readable) -> bool:
    """Whether the directory of a zip archive ends where the file ends."""
    nbytes = min(file.nbytes, END.size + _LONGEST_COMMENT)
    tail = file.read_at(file.nbytes - nbytes, nbytes)
    found = tail.rfind(END_MAGIC)
    while found >= 0:
        if _is_end(file, tail, found):
            return True
        found = tail.rfind(END_MAGIC, 0, found)
    return False


def _is_end(file: Readable, tail: bytes, found: int) -> bool:
    """Whether what looks like the end of a zip archive has its directory before it."""
    if len(tail) - found < END.size:
        return False
    _, _, _, _, _, nbytes, _, comment_nbytes = END.unpack_from(tail, found)
    if found + END.size + comment_nbytes != len(tail):
        return False
    if tail[:found][-END64_LOCATOR.size :].startswith(END64_LOCATOR_MAGIC):
        return True
    start = file.nbytes - len(tail) + found - nbytes
    return start >= 0 and nbytes >= 4 and file.read_at(start, 4) == CENTRAL_MAGIC
