"""A plain pickle, of any protocol, that is no PyTorch stream.

Layout: one pickle from the first byte to its STOP. Protocol 2 and newer start with 0x80 and the
protocol's number; protocols 0 and 1 have no mark of their own.

Limits: tensors inside are recipes of nested pickles (`torch.storage._load_from_bytes`) and stay
recipes.

Source: Lib/pickle.py of CPython.
"""

from __future__ import annotations

import contextlib

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem
from torchkeep.files import InputFile
from torchkeep.formats.format import Format
from torchkeep.formats.torch_objects import TORCH_CONSTRUCTORS
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.source import ByteSource

_TEXT_OPENINGS = (b"(", b"c", b"]", b"}", b")")
"""How protocols 0 and 1 start when they hold anything but a lone number or text."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a pickle does; for protocols 0 and 1, whether it runs as one."""
    if head[:1] == b"\x80":
        return 2 <= head[1] <= 5 if len(head) > 1 else False
    if not head.startswith(_TEXT_OPENINGS):
        return False
    # Text may start the same way. A pickle either ends well within the head, or is cut off.
    source = ByteSource.of_bytes(head)
    with contextlib.suppress(FileProblem):
        run_pickle(source)
        return source.position == nbytes
    return nbytes > len(head) and source.remaining < len(head) // 4


def describe(file: InputFile, limits: Limits) -> Contents:
    """Return what the pickle holds."""
    source = ByteSource(file.read_at, 0, file.nbytes)
    pickled = run_pickle(source, constructors=TORCH_CONSTRUCTORS, limits=limits)
    findings = list(pickled.findings)
    if source.remaining:
        text = f"{source.remaining} bytes follow the pickle"
        findings.append(Finding("trailing-bytes", "ambiguous", "", text))
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=pickled.root,
        metadata={"protocol": str(pickled.protocol)},
        globals=pickled.globals,
        findings=tuple(findings),
    )


FORMAT = Format("pickle", sniff, describe)
