"""One file per format: bytes in, `Contents` out. Nothing here imports torch.

`READERS` is the list of what can be read, in the order in which a file is tried. To add a format:
write `formats/<name>.py` with a `FORMAT`, add it here, add a sample to the conformance suite
(tests/formats/samples.py) and a row to docs/formats.md.
"""

from __future__ import annotations

import os
from dataclasses import replace

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem
from torchkeep.files import InputFile
from torchkeep.formats import foreign, pickle, safetensors, torch_legacy, torch_zip
from torchkeep.formats.format import HEAD_NBYTES, Format
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

READERS: tuple[Format, ...] = (
    torch_zip.FORMAT,
    safetensors.FORMAT,
    torch_legacy.FORMAT,
    pickle.FORMAT,
)
"""Every readable format. The plain pickle comes last: a legacy stream starts like one."""


def describe(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Contents:
    """Return what a file holds, without its tensors' bytes, executing nothing.

    Args:
        path: the file.
        limits: bounds of the work that a file may cause.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it is a folder, or may not be read.
        NotAModelFile: it is something else: a web page, a Git LFS pointer, text, nothing.
        DamagedFile: it is truncated, or contradicts itself.
        LimitReached: reading it takes more than a limit allows.
        UnsupportedContent: it is of a kind that is recognised and not read.
    """
    with InputFile(path) as file:
        try:
            head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
            for reader in READERS:
                if reader.sniff(head, file.nbytes):
                    return _with_other_views(reader.describe(file, limits), head)
            raise foreign.recognise(head, file.nbytes)
        except FileProblem as problem:
            raise problem.in_file(path) from None


def _with_other_views(contents: Contents, head: bytes) -> Contents:
    """Add a finding if another program would take the file for another kind."""
    if contents.container == torch_zip.FORMAT.name or not foreign.is_tar_header(head):
        return contents
    text = "the file is a tar archive too, and torch.load reads it as one"
    finding = Finding("polyglot", "ambiguous", "", text)
    return replace(contents, findings=(*contents.findings, finding))


__all__ = ["READERS", "Format", "describe"]
