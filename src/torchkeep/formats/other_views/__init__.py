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
from torchkeep.formats.archives.tar_directory import is_tar_header
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.other_views.hidden_pickle import find_hidden_pickle
from torchkeep.formats.other_views.trailing_zip import with_trailing_zip
from torchkeep.formats.zips.structs import LOCAL_MAGIC
from torchkeep.pickles.limits import Limits

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
    container = CONTAINERS[contents.container]
    is_zip = head.startswith(LOCAL_MAGIC)
    if is_zip and is_tar_header(head):
        findings.append(_polyglot("the file is a tar archive too, and tar programs read it as one"))
    elif not container.may_be_tar and is_tar_header(head):
        findings.append(_polyglot("the file is a tar archive too, and torch.load reads it as one"))
    names = dict.fromkeys(contents.globals)
    is_pickle = contents.pickle_protocol is not None and head.startswith(b"\x80")
    was_run = is_pickle or container.tells_of_pickles
    if not is_zip and not was_run:
        found, hidden = find_hidden_pickle(file, limits)
        names.update(dict.fromkeys(found))
        findings += hidden
    if contents.container == "text":
        contents = _with_settings(contents, file)
    if findings:
        joined = (*contents.findings, *findings)
        contents = replace(contents, globals=tuple(names), findings=joined)
    return with_trailing_zip(contents, file, head, limits)


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
