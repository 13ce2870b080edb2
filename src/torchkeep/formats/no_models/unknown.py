"""What is no model, or a model of a kind without a reader, told by the bytes that it starts with.

Layout: none. A table of the marks that such files start with, as their own specifications or the
`file` program's tables give them; what has no mark is of no known kind.

Limits: nothing but the start is looked at, and of a file of zeros a few places more.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem, NotAModelFile
from torchkeep.files import Readable
from torchkeep.formats.described_only import no_model, not_loaded
from torchkeep.formats.format import HEAD_NBYTES, Format
from torchkeep.formats.other_views.hidden_pickle import find_hidden_pickle
from torchkeep.pickles.limits import Limits


@dataclass(frozen=True, slots=True)
class _Mark:
    """Bytes that tell a kind of file.

    Attributes:
        magic: the bytes.
        kind: the kind, without an article.
        use: what such a file is to whoever looks for a model.
        offset: where the bytes stand.
    """

    magic: bytes
    kind: str
    use: str
    offset: int = 0


_MODEL, _DATA, _CODE = "model", "data", "code"

_MARKS = (
    _Mark(b"TFL3", "TensorFlow Lite model", _MODEL, 4),
    _Mark(b"\x08\x01\x12", "TensorFlow SavedModel", _MODEL),
    _Mark(b"ggjt"[::-1], "GGML model of 2023 (ggjt)", _MODEL),
    _Mark(b"ggml"[::-1], "GGML model of 2023", _MODEL),
    _Mark(b"ggmf"[::-1], "GGML model of 2023 (ggmf)", _MODEL),
    _Mark(b"ggla"[::-1], "GGML adapter of 2023", _MODEL),
    _Mark(b"ftrt", "TensorRT engine", _MODEL),
    _Mark(b"ptrt", "TensorRT engine", _MODEL),
    _Mark(b"RKNN", "RKNN model", _MODEL),
    _Mark(b"binf", "XGBoost model", _MODEL),
    _Mark(b"{L\0\0\0\0\0\0\0\7learner", "XGBoost model in UBJSON", _MODEL),
    _Mark(b"ZF0x", "compressed pickle of an old joblib", _MODEL),
    _Mark(b"\x89PNG", "PNG picture", _DATA),
    _Mark(b"\xff\xd8\xff", "JPEG picture", _DATA),
    _Mark(b"GIF8", "GIF picture", _DATA),
    _Mark(b"II*\0", "TIFF picture", _DATA),
    _Mark(b"MM\0*", "TIFF picture", _DATA),
    _Mark(b"WEBP", "WebP picture", _DATA, 8),
    _Mark(b"WAVE", "WAV sound", _DATA, 8),
    _Mark(b"fLaC", "FLAC sound", _DATA),
    _Mark(b"ID3", "MP3 sound", _DATA),
    _Mark(b"OggS", "Ogg sound", _DATA),
    _Mark(b"ftyp", "MP4 video", _DATA, 4),
    _Mark(b"\x1a\x45\xdf\xa3", "Matroska video", _DATA),
    _Mark(b"%PDF", "PDF document", _DATA),
    _Mark(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "document of an old Office", _DATA),
    _Mark(b"PAR1", "Parquet table", _DATA),
    _Mark(b"ARROW1", "Arrow table", _DATA),
    _Mark(b"SQLite format 3\0", "SQLite database", _DATA),
    _Mark(b"MATLAB 7.3 MAT-file", "MATLAB file", _DATA),
    _Mark(b"MATLAB 5.0 MAT-file", "MATLAB file", _DATA),
    _Mark(b"\x7fELF", "program", _CODE),
    _Mark(b"\xfe\xed\xfa\xce", "macOS program", _CODE),
    _Mark(b"\xfe\xed\xfa\xcf", "macOS program", _CODE),
    _Mark(b"\xce\xfa\xed\xfe", "macOS program", _CODE),
    _Mark(b"\xcf\xfa\xed\xfe", "macOS program", _CODE),
    _Mark(b"\xca\xfe\xba\xbe", "macOS program or Java class", _CODE),
    _Mark(b"\0asm", "WebAssembly program", _CODE),
    _Mark(b"dex\n", "Android program", _CODE),
)
"""What the files start with that have no reader of their own. Windows programs: see `_windows`."""

_PROBED_NBYTES = 4096


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the file seems to be."""
    head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
    kind, problem, findings = _recognise(file, head)
    names, hidden = find_hidden_pickle(file, limits)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        globals=names,
        findings=(*findings, *hidden),
        kind=kind,
        problem=problem,
    )


def _recognise(file: Readable, head: bytes) -> tuple[str, FileProblem, list[Finding]]:
    """Return the kind in words, what keeps it from being read, and what is to be said about it."""
    if not head:
        empty = NotAModelFile("the file is empty", advice="Save or download it again.")
        return "empty file", empty, []
    if _is_zeros(file):
        advice = "Its content was lost in a copy or a crash: take it from its source again."
        return "file of zeros", NotAModelFile("the file holds zeros", advice=advice), []
    mark = _mark_of(head)
    if mark is None:
        unknown = NotAModelFile(
            f"the file is of no known kind (it starts with {head[:8].hex(' ')})",
            advice="If it should be a model, copy or download it again.",
        )
        return "file of no known kind", unknown, []
    name = f"{_article(mark.kind)} {mark.kind}"
    if mark.use == _MODEL:
        return mark.kind, not_loaded(name), []
    if mark.use == _CODE:
        text = f"the file is {name}: to open it can be to run it"
        return mark.kind, no_model(name), [Finding("program", "needs-trust", "", text)]
    return mark.kind, no_model(name), []


def _is_zeros(file: Readable) -> bool:
    """Whether the file holds zeros at its start, in the middle and at its end."""
    size = min(_PROBED_NBYTES, file.nbytes)
    places = (0, (file.nbytes - size) // 2, file.nbytes - size)
    return not any(file.read_at(place, size).strip(b"\0") for place in places)


def _mark_of(head: bytes) -> _Mark | None:
    for mark in _MARKS:
        if head.startswith(mark.magic, mark.offset):
            return mark
    if _is_windows(head):
        return _Mark(b"MZ", "Windows program", _CODE)
    return None


def _is_windows(head: bytes) -> bool:
    """Whether the file starts with a DOS header, whose last field says where the program is."""
    return head.startswith(b"MZ") and len(head) >= 64 and head[60:64] != b"\0\0\0\0"


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiouAEIO" or kind.startswith(("RKNN", "XGB", "MP")) else "a"


def _anything(head: bytes, nbytes: int) -> bool:
    del head, nbytes
    return True


FORMAT = Format("unknown", _anything, describe)
