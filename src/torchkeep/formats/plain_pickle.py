"""A plain pickle, of any protocol, that is no PyTorch stream.

Layout: one pickle from the first byte to its STOP. Protocol 2 and newer start with 0x80 and the
protocol's number; protocols 0 and 1 have no mark of their own.

A tensor in it is a whole file of PyTorch's in bytes; see `torch.unpickling`.

Limits: the `data.pkl` that somebody took out of a torch zip is described with its
tensors' names and shapes; their bytes are elsewhere, and a finding says so.

Source: Lib/pickle.py of CPython.
"""

from __future__ import annotations

import contextlib

from torchkeep.contents import Contents, Finding, Object, Storage, Value
from torchkeep.errors import FileProblem
from torchkeep.files import Readable
from torchkeep.formats.ecosystems.paddle import is_paddle, named_paddle
from torchkeep.formats.format import Format
from torchkeep.formats.torch.objects import parse_storage_id, storage_entry
from torchkeep.formats.torch.unpickling import bytes_behind, run_torch_pickle
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import PERSISTENT_ID
from torchkeep.pickles.source import ByteSource

_TEXT_OPENINGS = (b"(", b"c", b"]", b"}", b")")
"""How protocols 0 and 1 start when they hold anything but a lone number or text."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a pickle does; for protocols 0 and 1, whether it runs as one."""
    if head[:1] == b"\x80":
        return len(head) > 1 and head[1] <= 5
    if not head.startswith(_TEXT_OPENINGS):
        return False
    # Text may start the same way. A pickle either ends well within the head, or is cut off.
    source = ByteSource.of_bytes(head)
    with contextlib.suppress(FileProblem):
        run_pickle(source)
        return source.position == nbytes
    return nbytes > len(head) and source.remaining < len(head) // 4


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the pickle holds."""
    source = ByteSource(file.read_at, 0, file.nbytes)
    findings: list[Finding] = []
    pickled = run_torch_pickle(
        source,
        persistent=lambda pid: _storage_elsewhere(pid, findings),
        limits=limits,
        file=file,
    )
    findings = [*pickled.findings, *dict.fromkeys(findings), *bytes_behind(source)]
    contents = Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=pickled.root,
        pickle_protocol=pickled.protocol,
        globals=pickled.globals,
        findings=tuple(findings),
    )
    return named_paddle(contents) if is_paddle(contents.root) else contents


def _storage_elsewhere(pid: Value, findings: list[Finding]) -> Value:
    parts = parse_storage_id(pid)
    if parts is None:
        text = "a persistent id names something that is not in the file"
        findings.append(Finding("persistent-id", "ambiguous", "", text))
        return Object(PERSISTENT_ID, (pid,))
    text = "the tensors' bytes are not in the file: it is the data.pkl of a PyTorch archive"
    findings.append(Finding("missing-storage", "damaged", "", text))
    return storage_entry(Storage(parts.key, parts.nbytes, None, parts.device), parts)


FORMAT = Format("pickle", sniff, describe)
